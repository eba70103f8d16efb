"""Multi-head latent attention (DeepSeek-V2, section 2.1): all heads' keys and values from one latent a token.

    c_q  = RMSNorm(W_qa x)          (.., r_q)         q = W_qb c_q          (.., h, d_qk) = [q_nope | q_rope]
    [c | k_r] = W_kva x             (.., r + d_r)     c_kv = RMSNorm(c)
    [k_nope | v] = W_kvb c_kv       (.., h, d_n + d_v)
    k = [k_nope | RoPE(k_r)]        k_r is shared by all heads;  q = [q_nope | RoPE(q_rope)]
    o = softmax(s q k^T + causal) v ;  y = W_o concat(o)

Only c_kv and RoPE(k_r) are cached. `expanded` makes every head's keys and values from them, as written above.
`absorbed` moves W_kvb to the other side: with W_UK its rows for k_nope and W_UV those for v, head by head,

    q_nope . k_nope = q_nope . (W_UK c_kv) = (W_UK^T q_nope) . c_kv
    sum_j p_j v_j   = sum_j p_j W_UV c_kv_j = W_UV (sum_j p_j c_kv_j)

so all heads attend to the latents themselves, as in multi-query attention with a key of r + d_r numbers.
"""

import numpy as np

import tinygrad_ds as tg
from layers.attention import attend
from layers.config import DeepSeekConfig
from layers.context import Context
from layers.linear import Linear
from layers.module import Module
from layers.norm import LATENT_EPS, RMSNorm
from layers.precision import products
from layers.rope import softmax_scale
from tinygrad_ds import Tensor


class MLA(Module):
    """x (batch, time, hidden) -> y (batch, time, hidden). `layer` is its slot in the cache.

    `form` is "expanded" or "absorbed"; None takes the one that costs less for the call at hand.
    """

    def __init__(self, config: DeepSeekConfig, layer: int, dtype: np.dtype) -> None:
        d, r_q, bias = config.hidden_size, config.q_lora_rank, config.attention_bias
        self.layer, self.form = layer, None
        self.h, self.r = config.num_attention_heads, config.kv_lora_rank
        self.d_n, self.d_r, self.d_v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.s, self.interleaved = softmax_scale(config), config.rope_interleave
        if r_q is None:
            self.q_proj = Linear(d, self.h * config.qk_head_dim, dtype)
        else:
            self.q_a_proj = Linear(d, r_q, dtype, bias=bias)
            self.q_a_layernorm = RMSNorm(r_q, LATENT_EPS, dtype)
            self.q_b_proj = Linear(r_q, self.h * config.qk_head_dim, dtype)
        self.kv_a_proj_with_mqa = Linear(d, self.r + self.d_r, dtype, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.r, LATENT_EPS, dtype)
        self.kv_b_proj = Linear(self.r, self.h * (self.d_n + self.d_v), dtype)
        self.o_proj = Linear(self.h * self.d_v, d, dtype, bias=bias, behind_attention=True)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        batch, time, _ = x.shape
        q_nope, q_rope = tg.split(self.queries(x), sections=[self.d_n], axis=-1)  # (batch, time, h, ..)
        c, k_r = tg.split(self.kv_a_proj_with_mqa(x), sections=[self.r], axis=-1)
        c_kv = self.kv_a_layernorm(c).reshape(batch, time, 1, self.r)
        k_r = self.rope(k_r.reshape(batch, time, 1, self.d_r), context)
        q_rope = self.rope(q_rope, context)

        latent, length = None, time  # [c_kv | k_r] of all tokens so far, (batch, length, 1, r + d_r)
        if context.cache is not None:
            rows = tg.concatenate([c_kv, k_r], axis=-1).data
            latent = Tensor(context.cache.append(self.layer, rows.swapaxes(1, 2)).swapaxes(1, 2))
            length = latent.shape[1]
        if (self.form or self.cheaper_form(time, length)) == "absorbed":
            if latent is None:
                latent = tg.concatenate([c_kv, k_r], axis=-1)
            o = self.absorbed(q_nope, q_rope, latent, context)
        else:
            if latent is not None:
                c_kv, k_r = tg.split(latent, sections=[self.r], axis=-1)
            o = self.expanded(q_nope, q_rope, c_kv, k_r, context)
        return self.o_proj(o.reshape(batch, time, self.h * self.d_v))

    def queries(self, x: Tensor) -> Tensor:
        """q (batch, time, h, d_qk) of x (batch, time, hidden)."""
        if hasattr(self, "q_proj"):
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return q.reshape(*x.shape[:2], self.h, self.d_n + self.d_r)

    def rope(self, x: Tensor, context: Context) -> Tensor:
        """x (batch, time, heads, d_r), turned by its positions."""
        return tg.rope(x, context.cos, context.sin, interleaved=self.interleaved)

    def expanded(self, q_nope: Tensor, q_rope: Tensor, c_kv: Tensor, k_r: Tensor, context: Context) -> Tensor:
        """o (batch, time, h, d_v) over the keys and values of c_kv (batch, length, 1, r), k_r (.., d_r)."""
        batch, length, _, _ = c_kv.shape
        kv = self.kv_b_proj(c_kv).reshape(batch, length, self.h, self.d_n + self.d_v)
        k_nope, v = tg.split(kv, sections=[self.d_n], axis=-1)  # (batch, length, h, d_n), (.., d_v)
        k_r = tg.broadcast_to(k_r, shape=(batch, length, self.h, self.d_r))
        k = tg.concatenate([k_nope, k_r], axis=-1)  # (batch, length, h, d_qk)
        q = tg.concatenate([q_nope, q_rope], axis=-1)  # (batch, time, h, d_qk)
        return attend(q, k, v, self.s, context)

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, context: Context) -> Tensor:
        """The same o over latent (batch, length, 1, r + d_r) = [c_kv | k_r] itself."""
        w = self.kv_b_proj.weight.reshape(self.h, self.d_n + self.d_v, self.r)
        w_uk, w_uv = tg.split(w, sections=[self.d_n], axis=1)  # (h, d_n, r), (h, d_v, r)
        q_lat = (q_nope.swapaxes(1, 2) @ w_uk).swapaxes(1, 2)  # (batch, time, h, r)
        q = tg.concatenate([q_lat, q_rope], axis=-1)  # (batch, time, h, r + d_r)
        o_lat = attend(q, latent, latent[..., : self.r], self.s, context)  # (batch, time, h, r)
        return (o_lat.swapaxes(1, 2) @ w_uv.swapaxes(1, 2)).swapaxes(1, 2)

    def cheaper_form(self, time: int, length: int) -> str:
        """The form with fewer products for `time` queries over `length` keys, per head.

        Where products are rounded W_kvb stays whole, so that it is rounded as any other matrix.
        """
        if products().rounds:
            return "expanded"
        expand = length * self.r * (self.d_n + self.d_v) + time * length * (self.d_n + self.d_r + self.d_v)
        absorb = time * self.r * (self.d_n + self.d_v) + time * length * (2 * self.r + self.d_r)
        return "absorbed" if absorb < expand else "expanded"
