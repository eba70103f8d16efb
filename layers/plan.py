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
SMALL = "norms and biases"


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
    module = [
        *block_parts(config, modules, 0),
        Part("joining", modules * 2 * d * d, modules * 2 * d * d),  # eh_proj
        Part("norms at both ends", modules * 3 * d, modules * 3 * d),  # enorm, hnorm, shared_head.norm
    ]
    return [*trunk, *(part._replace(name=f"{MTP} {part.name}") for part in module)]


def block_parts(config: DeepSeekConfig, layers: int, dense: int) -> list[Part]:
    """The parts of `layers` blocks, the first `dense` of them without experts."""
    d, moe = config.hidden_size, layers - dense
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    expert = 3 * d * config.moe_intermediate_size
    mlp, shared = 3 * d * config.intermediate_size, config.n_shared_experts * expert
    matrices, vectors = attention_numbers(config)
    small = layers * (vectors + 2 * d) + moe * experts * config.has_correction_bias
    every = [
        Part("attention", layers * matrices, layers * matrices, True),
        Part("dense feed-forward", dense * mlp, dense * mlp, True),
        Part("routed experts", moe * experts * expert, moe * chosen * expert, True),
        Part("shared experts", moe * shared, moe * shared, True),
        Part("routers", moe * experts * d, moe * experts * d),
        Part(SMALL, small, small),
    ]
    return [part for part in every if part.total]


def attention_numbers(config: DeepSeekConfig) -> tuple[int, int]:
    """Numbers in one layer's attention: (matrices, norms on latents and biases)."""
    d, h, d_qk, d_v = config.hidden_size, config.num_attention_heads, config.qk_head_dim, config.v_head_dim
    bias = config.attention_bias
    if config.attention_kind != "mla":
        rows = h * d_qk + config.num_key_value_heads * (d_qk + d_v)
        return rows * d + d * h * d_v, bias * (rows + d)
    r_q, r, d_r = config.q_lora_rank, config.kv_lora_rank, config.qk_rope_head_dim
    queries = h * d_qk * d if r_q is None else r_q * d + h * d_qk * r_q
    keys_and_values = (r + d_r) * d + h * (config.qk_nope_head_dim + d_v) * r
    biases = bias * ((r_q or 0) + r + d_r + d)  # never on q_proj, q_b_proj and kv_b_proj
    return queries + keys_and_values + d * h * d_v, r + (r_q or 0) + biases


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
