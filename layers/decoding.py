"""Decoding: one new token for every row without a tape, through the functions of tinygrad_ds/ops/decoding.py.

It reads what it needs of each layer once: the weights, of the chosen experts only, and the latent cache. It
gives what the whole network gives for one column, and serves what is asked most: MLA without biases.
"""

from typing import Any

import numpy as np

from layers.mla import MLA
from layers.mlp import MLP
from layers.moe import MoE
from layers.norm import LATENT_EPS, RMSNorm
from tinygrad_ds.device import Array, place
from tinygrad_ds.ops.decoding import (
    LatentAttentionWeights,
    latent_attention_step,
    mlp_step,
    moe_step,
)


def covers(model: Any) -> bool:
    """Whether this network can be decoded here."""
    return model.config.attention_kind == "mla" and not model.config.attention_bias


def decode_step(model: Any, ids: np.ndarray, cache: Any, first: np.ndarray | None) -> Array:
    """x (batch, 1, hidden) of ids (batch, 1) before the final norm, as `DeepSeekModel.trunk` computes it."""
    batch, length = len(ids), cache.length
    first = np.zeros(batch, dtype=np.int64) if first is None else np.asarray(first).reshape(batch)
    cos, sin = (
        table.reshape(batch, -1) for table in model.rotary(np.maximum(length - first, 0))
    )  # (batch, d_r/2)
    x = model.embed_tokens.weight.data[place(ids[:, 0])]  # (batch, hidden)
    for block in model.layers:
        a: MLA = block.self_attn
        x = x + latent_attention_step(
            x,
            block.input_layernorm.weight.data,
            attention_weights(a),
            cache.room(a.layer, batch, 1)[:, 0],
            length,
            first,
            cos,
            sin,
            heads=a.h,
            scale=a.s,
            eps=block.input_layernorm.eps,
            latent_eps=LATENT_EPS,
            interleaved=a.interleaved,
        )
        x = x + feed_forward(block.mlp, x, block.post_attention_layernorm)
    cache.advance(1)
    return x[:, None]


def attention_weights(a: MLA) -> LatentAttentionWeights:
    """The arrays of one layer."""
    plain = not hasattr(a, "q_a_proj")
    return LatentAttentionWeights(
        None if plain else a.q_a_proj.weight.data,
        None if plain else a.q_a_layernorm.weight.data,
        a.q_proj.weight.data if plain else a.q_b_proj.weight.data,
        a.kv_a_proj_with_mqa.weight.data,
        a.kv_a_layernorm.weight.data,
        a.kv_b_proj.weight.data,
        a.o_proj.weight.data,
    )


def feed_forward(mlp: MLP | MoE, x: Array, norm: RMSNorm) -> Array:
    """FFN(RMSNorm(x)) of one block. x (batch, hidden) -> (batch, hidden)."""
    if isinstance(mlp, MLP):
        gate_up, down = mlp.gate_up_proj.weight.data, mlp.down_proj.weight.data
        return mlp_step(x, norm.weight.data, gate_up, down, eps=norm.eps)
    bias = getattr(mlp.gate, "e_score_correction_bias", None)
    if hasattr(mlp, "shared_experts"):
        shared = mlp.shared_experts.gate_up_proj.weight.data, mlp.shared_experts.down_proj.weight.data
    else:
        nothing = mlp.gate.weight.data[:0]  # (0, hidden)
        shared = nothing, nothing.T
    y, weights, indices = moe_step(
        x,
        norm.weight.data,
        mlp.gate.weight.data,
        None if bias is None else bias.data,
        mlp.experts.gate_up_proj.data,
        mlp.experts.down_proj.data,
        *shared,
        eps=norm.eps,
        **mlp.gate.rules,
    )
    mlp.chosen, mlp.weights = indices[:, None], weights[:, None]
    return y
