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
        self.o_proj = Linear(self.h * self.d_v, d, dtype, bias=bias)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        batch, time, _ = x.shape
        q = self.rope(self.heads(self.q_proj(x), self.h), context)  # (batch, h, time, d_qk)
        k = self.rope(self.heads(self.k_proj(x), self.n_kv), context)  # (batch, n_kv, time, d_qk)
        v = self.heads(self.v_proj(x), self.n_kv)  # (batch, n_kv, time, d_v)
        if context.cache is not None:
            k, v = map(Tensor, context.cache.append(self.layer, k.data, v.data))
        o = tg.attention(q, k, v, scale=self.s, first=context.first)
        return self.o_proj(o.transpose(0, 2, 1, 3).reshape(batch, time, self.h * self.d_v))

    def heads(self, x: Tensor, count: int) -> Tensor:
        """(batch, time, count d) -> (batch, count, time, d)."""
        batch, time, width = x.shape
        return x.reshape(batch, time, count, width // count).transpose(0, 2, 1, 3)

    def rope(self, x: Tensor, context: Context) -> Tensor:
        """x (batch, heads, time, d_qk) with its last d_r numbers turned by their positions."""
        nope, turned = tg.split(x, sections=[self.d_n], axis=-1)
        turned = tg.rope(turned, context.cos, context.sin, interleaved=self.interleaved)
        return tg.concatenate([nope, turned], axis=-1)
