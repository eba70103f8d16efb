"""What a network costs before it exists: its parameters by part, bytes of cache and memory, and time by the
roofline.

Everything follows from a config alone. Counts are of published tensors; `active` is what one token's pass
reads.
"""

from typing import NamedTuple

from layers.config import DeepSeekConfig
from tinygrad_ds.dtypes import dtype


class Part(NamedTuple):
    """Numbers in one part of a network. `quantised`: stored in FP8 where the checkpoint is."""

    name: str
    total: int
    active: int
    quantised: bool = False


MTP = "MTP"  # what the names of the parts of MTP modules begin with


def parts(config: DeepSeekConfig) -> list[Part]:
    """The parts of the trunk, then those of MTP modules, without the embedding and head that they share."""
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace
    d, vocab = config.hidden_size, config.vocab_size
    head = 0 if config.tie_word_embeddings else vocab * d
    modules = config.num_nextn_predict_layers
    trunk = [
        Part("embedding", vocab * d, vocab * d),
        *block_parts(config, layers, dense),
        Part("final norm", d, d),
        Part("output head", head, vocab * d),
    ]
    if not modules:
        return trunk
    joining = modules * (2 * d * d + 3 * d)  # eh_proj; enorm, hnorm and shared_head.norm
    module = [*block_parts(config, modules, 0), Part("joining and norms", joining, joining)]
    return [*trunk, *(part._replace(name=f"{MTP} {part.name}") for part in module)]


def block_parts(config: DeepSeekConfig, layers: int, dense: int) -> list[Part]:
    """The parts of `layers` blocks, the first `dense` of them without experts."""
    d, moe = config.hidden_size, layers - dense
    expert = 3 * d * config.moe_intermediate_size
    mlp, shared = 3 * d * config.intermediate_size, config.n_shared_experts * expert
    router = config.n_routed_experts * (d + config.has_correction_bias)
    projections, norms = attention_numbers(config)
    norms += 2 * d
    every = [
        Part("attention", layers * projections, layers * projections, True),
        Part("dense feed-forward", dense * mlp, dense * mlp, True),
        Part(
            "routed experts",
            moe * config.n_routed_experts * expert,
            moe * config.num_experts_per_tok * expert,
            True,
        ),
        Part("shared experts", moe * shared, moe * shared, True),
        Part("routers", moe * router, moe * router),
        Part("norms", layers * norms, layers * norms),
    ]
    return [part for part in every if part.total]


def attention_numbers(config: DeepSeekConfig) -> tuple[int, int]:
    """Numbers in one layer's attention: (projections with their biases, norms on latents)."""
    d, h, d_qk, d_v = config.hidden_size, config.num_attention_heads, config.qk_head_dim, config.v_head_dim
    bias = config.attention_bias
    if config.attention_kind != "mla":
        rows = h * d_qk + config.num_key_value_heads * (d_qk + d_v)
        return rows * (d + bias) + d * (h * d_v + bias), 0
    r_q, r, d_r = config.q_lora_rank, config.kv_lora_rank, config.qk_rope_head_dim
    queries = h * d_qk * d if r_q is None else r_q * (d + bias) + h * d_qk * r_q
    keys_and_values = (r + d_r) * (d + bias) + h * (config.qk_nope_head_dim + d_v) * r
    return queries + keys_and_values + d * (h * d_v + bias), r + (r_q or 0)


def count(config: DeepSeekConfig, *, active: bool = False, embedding: bool = True, mtp: bool = False) -> int:
    """Numbers in the network, or in one token's way through it; embedding and MTP modules as wanted."""
    return sum(
        part.active if active else part.total
        for part in parts(config)
        if (mtp or not part.name.startswith(MTP)) and (embedding or part.name != "embedding")
    )


def cache_numbers(config: DeepSeekConfig, *, mtp: bool = False) -> int:
    """Numbers that the caches keep for one token, over all layers (facts: (d_c + d_r) l for MLA)."""
    slots = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
    if config.attention_kind == "mla":
        return slots * (config.kv_lora_rank + config.qk_rope_head_dim)
    return slots * config.num_key_value_heads * (config.qk_head_dim + config.v_head_dim)


def weight_bytes(config: DeepSeekConfig, kind: str, *, mtp: bool = False) -> int:
    """Bytes of the weights in number format `kind`; "float8" is the published mixture of FP8 and bfloat16."""
    return sum(
        stored(part.total, kind, part.quantised)
        for part in parts(config)
        if mtp or not part.name.startswith(MTP)
    )


def stored(numbers: float, kind: str, quantised: bool) -> int:
    """Bytes of so many numbers: float8 has 1 each, and a float32 scale for every 128 x 128 block."""
    if kind != "float8":
        return round(numbers * dtype(kind).itemsize)
    return round(numbers * (1 + 4 / 128**2)) if quantised else round(numbers * 2)
