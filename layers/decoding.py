"""Decoding: one new token for every row without a tape, through `token_step` of tinygrad_ds/ops/decoding.py.

It reads what it needs of each layer once: the weights, of the chosen experts only, and the latent cache. It
gives what the whole network gives for one column, and serves what is asked most: MLA without biases.
"""

from collections.abc import Callable
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np

from layers.block import Block
from layers.cache import KVCache, LatentCache
from layers.mla import MLA
from layers.mlp import MLP
from layers.moe import MoE
from layers.norm import LATENT_EPS
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array
from tinygrad_ds.ops.decoding import (
    BlockWeights,
    LatentAttentionWeights,
    NetworkWeights,
    TokenStep,
    token_step,
)

if TYPE_CHECKING:
    from layers.model import DeepSeekModel

POSITIONS = 256  # by which the tables of angles grow


class Plan(NamedTuple):
    """What decoding needs of a model, found once: it holds while every leaf has the array that it had."""

    leaves: list[Tensor]
    arrays: list[Array]
    moes: list[MoE]
    weights: NetworkWeights
    options: dict[str, Any]
    angles: list[Array]  # cos and sin (positions, d_r/2), made anew where more positions are needed


_plans: WeakKeyDictionary = WeakKeyDictionary()


def forget(model: "DeepSeekModel") -> None:
    """Let go of what decoding has found of a network, which would keep its arrays alive."""
    _plans.pop(model, None)


def covers(model: "DeepSeekModel") -> bool:
    """Whether this network can be decoded here."""
    return model.config.attention_kind == "mla" and not model.config.attention_bias


class Stepper:
    """One new column after the other behind a cache: what can be looked up once is looked up once.

    The weights are those that the model has when the stepper is made.
    """

    def __init__(self, model: "DeepSeekModel", cache: KVCache | LatentCache) -> None:
        plan = _plans.get(model)
        if plan is None or not all(map(is_, [leaf.data for leaf in plan.leaves], plan.arrays)):
            plan = _plans[model] = make_plan(model)
        self.model, self.cache, self.plan = model, cache, plan

    def __call__(self, ids: Array, first: np.ndarray) -> TokenStep:
        """The network's answer to ids (batch,), whose latents go into the cache; first (batch,) int64.

        Raises ValueError for a position beyond the longest.
        """
        plan, cache = self.plan, self.cache
        length = cache.length
        needed = length - min(first.tolist(), default=length) + 1
        if needed > len(plan.angles[0]):
            grown = min(-(-needed // POSITIONS) * POSITIONS, self.model.config.max_position_embeddings)
            plan.angles[:] = self.model.rotary(np.arange(max(needed, grown)))
        latents = cache.room(slice(None), len(ids), 1)[:, :, 0]
        step = token_step(ids, plan.weights, latents, length, first, *plan.angles, **plan.options)
        cache.length = length + 1
        for moe, weights, indices in zip(plan.moes, step.weights, step.indices):
            moe.weights, moe.chosen = weights[:, None], indices[:, None]
        return step


def make_plan(model: "DeepSeekModel") -> Plan:
    """Look up every array of the network."""
    leaves: list[Tensor] = []

    def read(leaf: Tensor) -> Array:
        leaves.append(leaf)
        return leaf.data

    weights = NetworkWeights(
        read(model.embed_tokens.weight),
        tuple(block_weights(block, read) for block in model.layers),
        read(model.norm.weight),
        read(model.head_weight),
    )
    a = cast(MLA, model.layers[0].self_attn)
    moes = [block.mlp for block in model.layers if isinstance(block.mlp, MoE)]
    options = {
        "heads": a.h,
        "scale": a.s,
        "eps": model.config.rms_norm_eps,
        "latent_eps": LATENT_EPS,
        "interleaved": a.interleaved,
    }
    if moes:
        options |= moes[0].gate.rules
    angles = list(model.rotary(np.arange(0)))
    return Plan(leaves, [leaf.data for leaf in leaves], moes, weights, options, angles)


def block_weights(block: Block, read: Callable[[Tensor], Array]) -> BlockWeights:
    """The arrays of one block."""
    a, mlp = cast(MLA, block.self_attn), block.mlp
    plain = not hasattr(a, "q_a_proj")
    attention = LatentAttentionWeights(
        None if plain else read(a.q_a_proj.weight),
        None if plain else read(a.q_a_layernorm.weight),
        read(a.q_proj.weight if plain else a.q_b_proj.weight),
        read(a.kv_a_proj_with_mqa.weight),
        read(a.kv_a_layernorm.weight),
        read(a.kv_b_proj.weight),
        read(a.o_proj.weight),
    )
    norms = read(block.input_layernorm.weight), attention, read(block.post_attention_layernorm.weight)
    if isinstance(mlp, MLP):
        return BlockWeights(*norms, read(mlp.gate_up_proj.weight), read(mlp.down_proj.weight))
    bias, shared = getattr(mlp.gate, "e_score_correction_bias", None), getattr(mlp, "shared_experts", None)
    return BlockWeights(
        *norms,
        read(mlp.experts.gate_up_proj),
        read(mlp.experts.down_proj),
        read(mlp.gate.weight),
        None if bias is None else read(bias),
        None if shared is None else read(shared.gate_up_proj.weight),
        None if shared is None else read(shared.down_proj.weight),
    )
