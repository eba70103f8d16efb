"""Attention with its own keys and values per key head: MHA, GQA and MQA, in the place of MLA for comparison.

    q = W_q x   (.., h, d_qk)       k = W_k x   (.., n_kv, d_qk)       v = W_v x   (.., n_kv, d_v)
    q, k: their last d_r numbers turned by RoPE, as MLA has it;  query head i reads key head i // (h / n_kv)
    o = softmax(s q k^T + causal) v ;  y = W_o concat(o)

`num_key_value_heads` n_kv = h is multi-head, 1 multi-query, anything between grouped-query attention.
"""

import numpy as np

import tinygrad_ds as tg
from layers.config import DeepSeekConfig
from layers.context import Context
from layers.linear import Linear
from layers.module import Module
from layers.rope import softmax_scale
from tinygrad_ds import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, context: Context) -> Tensor:
    """Causal attention with heads behind the time, as projections give them.

    q (batch, time, h, d), k (batch, length, n_kv, d), v (batch, length, n_kv, d_v) -> (batch, time, h, d_v).
    """
    q, k, v = (each.swapaxes(1, 2) for each in (q, k, v))
    return tg.attention(q, k, v, scale=scale, first=context.first).swapaxes(1, 2)


class GroupedAttention(Module):
    """x (batch, time, hidden) -> y (batch, time, hidden). `layer` is its slot in the cache."""

    def __init__(self, config: DeepSeekConfig, layer: int, dtype: np.dtype) -> None:
        d, bias = config.hidden_size, config.attention_bias
        self.layer, self.h, self.n_kv = layer, config.num_attention_heads, config.num_key_value_heads
        self.d_n, self.d_qk, self.d_v = config.qk_nope_head_dim, config.qk_head_dim, config.v_head_dim
        self.s, self.interleaved = softmax_scale(config), config.rope_interleave
        self.q_proj = Linear(d, self.h * self.d_qk, dtype, bias=bias)
        self.k_proj = Linear(d, self.n_kv * self.d_qk, dtype, bias=bias)
        self.v_proj = Linear(d, self.n_kv * self.d_v, dtype, bias=bias)
        self.o_proj = Linear(self.h * self.d_v, d, dtype, bias=bias, behind_attention=True)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        batch, time, _ = x.shape
        q = self.rope(self.q_proj(x).reshape(batch, time, self.h, self.d_qk), context)
        k = self.rope(self.k_proj(x).reshape(batch, time, self.n_kv, self.d_qk), context)
        v = self.v_proj(x).reshape(batch, time, self.n_kv, self.d_v)
        if context.cache is not None:
            rows = context.cache.append(self.layer, k.data.swapaxes(1, 2), v.data.swapaxes(1, 2))
            k, v = (Tensor(every.swapaxes(1, 2)) for every in rows)  # (batch, length, n_kv, ..)
        o = attend(q, k, v, self.s, context)  # (batch, time, h, d_v)
        return self.o_proj(o.reshape(batch, time, self.h * self.d_v))

    def rope(self, x: Tensor, context: Context) -> Tensor:
        """x (batch, time, heads, d_qk) with its last d_r numbers turned by their positions."""
        nope, turned = tg.split(x, sections=[self.d_n], axis=-1)
        turned = tg.rope(turned, context.cos, context.sin, interleaved=self.interleaved)
        return tg.concatenate([nope, turned], axis=-1)
