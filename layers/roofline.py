"""What work a network takes: memory to train and to serve, products, bytes moved, and the least time for
both.

The roofline (Williams et al. 2009): a pass takes at least its floating-point operations over the machine's
rate, and at least its bytes over the memory's, whichever is longer. Intermediate results are taken to stay in
caches, so the times are bounds from below.
"""

from typing import NamedTuple

from layers.config import DeepSeekConfig
from layers.plan import MTP, SMALL, cache_numbers, count, parts, stored, weight_bytes
from tinygrad_ds.dtypes import dtype

LOGITS = 1024  # rows whose logits the head has at once (kernels/cuda/loss.py; on the CPU half as many)


class Work(NamedTuple):
    """One pass: floating-point operations, and bytes that cross the memory's bus at least."""

    tokens: int  # that it reads or makes
    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)

    def limit(self, flops_per_second: float, bytes_per_second: float) -> str:
        """What the time is for: "compute" or "memory"."""
        return "compute" if self.flops / flops_per_second >= self.bytes / bytes_per_second else "memory"


def products(config: DeepSeekConfig, *, mtp: bool = False) -> int:
    """Weights that one token is multiplied with, at 2 operations each: all in matrices, but no embedding."""
    vectors = ("embedding", "final norm", SMALL, f"{MTP} {SMALL}", f"{MTP} norms at both ends")
    used = [part for part in parts(config) if part.name not in vectors]
    trunk = sum(part.active for part in used if not part.name.startswith(MTP))
    if not mtp:
        return trunk
    heads = config.num_nextn_predict_layers * config.vocab_size * config.hidden_size  # the shared one again
    return sum(part.active for part in used) + heads


def attention_flops(
    config: DeepSeekConfig, length: float, *, absorbed: bool = False, mtp: bool = False
) -> float:
    """Operations of one query's scores and averages over `length` keys, in all layers and heads."""
    blocks = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
    if absorbed and config.attention_kind == "mla":
        width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    else:
        width = config.qk_head_dim + config.v_head_dim
    return 2.0 * blocks * config.num_attention_heads * width * length


def forward_flops(config: DeepSeekConfig, batch: int, length: int, *, mtp: bool = False) -> float:
    """Operations of a causal forward pass over whole sequences: the mean query sees half of the keys."""
    one = 2.0 * products(config, mtp=mtp) + attention_flops(config, (length + 1) / 2, mtp=mtp)
    return batch * length * one


def touched_bytes(config: DeepSeekConfig, tokens: int, kind: str) -> float:
    """Bytes of the weights that a pass over so many tokens reads, if every expert is as likely as another."""
    reached = 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** tokens
    total = 0.0
    for part in parts(config):
        if part.name.startswith(MTP):
            continue
        numbers = float(part.active if part.name == "output head" else part.total)
        if part.name == "routed experts":
            numbers *= reached
        elif part.name == "embedding":
            numbers = min(numbers, tokens * config.hidden_size)
        total += stored(numbers, kind, part.quantised)
    return total


def training_step(config: DeepSeekConfig, batch: int, length: int) -> Work:
    """A step in float32 with AdamW: a backward pass takes two products for each of the forward pass.

    Weights are read forward, backward and in the update, and written; gradients written and read; both
    moments read and written.
    """
    flops = 3 * forward_flops(config, batch, length, mtp=True)
    return Work(batch * length, flops, 4.0 * count(config, mtp=True) * (4 + 2 + 4))


def prefill(config: DeepSeekConfig, batch: int, length: int, kind: str) -> Work:
    """Reading the prompts."""
    tokens = batch * length
    moved = touched_bytes(config, tokens, kind) + tokens * cache_bytes(config, kind)
    return Work(tokens, forward_flops(config, batch, length), moved)


def decoding_step(config: DeepSeekConfig, batch: int, length: int, kind: str) -> Work:
    """One more token for each of `batch` sequences with `length` tokens in the cache, which is read whole."""
    flops = batch * (2.0 * products(config) + attention_flops(config, length, absorbed=True))
    moved = touched_bytes(config, batch, kind) + batch * length * cache_bytes(config, kind)
    return Work(batch, flops, moved)


def cache_bytes(config: DeepSeekConfig, kind: str) -> int:
    """Bytes of cache for a token. FP8 is for weights: the cache beside them is bfloat16."""
    return cache_numbers(config) * (2 if kind == "float8" else dtype(kind).itemsize)


def kept_numbers(config: DeepSeekConfig, *, recompute: bool = False) -> int:
    """Numbers that one token's forward pass keeps for the backward pass.

    What the primitives save, in every block (`kept_in_block`) and at both ends; of the head only the gradient
    of its input. recompute: of a block and of an MTP module their inputs alone (`tg.recompute`).
    """
    d, layers, modules = config.hidden_size, config.num_hidden_layers, config.num_nextn_predict_layers
    if recompute:
        return (layers + 2) * d + modules * 3 * d
    dense = config.first_k_dense_replace
    blocks = dense * kept_in_block(config, moe=False)
    blocks += (layers - dense + modules) * kept_in_block(config, moe=True)
    return blocks + 2 * d + modules * 6 * d


def kept_in_block(config: DeepSeekConfig, *, moe: bool) -> int:
    """Numbers that one token keeps in a block: inputs of norms and products, queries, keys, values and
    outputs of attention, both sides of SwiGLU; of the experts these alone.
    """
    d, h = config.hidden_size, config.num_attention_heads
    d_qk, d_v = config.qk_head_dim, config.v_head_dim
    if config.attention_kind == "mla":
        latents = 2 * (config.q_lora_rank or 0) + 2 * config.kv_lora_rank
        attention = latents + h * (2 * d_qk + config.qk_nope_head_dim + 2 * d_v)
    else:
        attention = h * (d_qk + d_v) + config.num_key_value_heads * (d_qk + d_v)
    if not moe:
        return 4 * d + attention + 3 * config.intermediate_size
    width, shared = config.moe_intermediate_size, config.n_shared_experts * config.moe_intermediate_size
    routed = config.num_experts_per_tok * (2 * width) + 3 * shared + 3 * config.n_routed_experts
    return 4 * d + attention + routed


def memory_to_train(
    config: DeepSeekConfig, batch: int, length: int, *, recompute: bool = False
) -> dict[str, int]:
    """Bytes by purpose, in float32: their sum is the peak of a step of several micro-batches, within a tenth.

    Weights, gradients, AdamW's two moments, what backward reads, the gradients that heads make with their
    loss, and the logits that a head has at once. recompute: where backward computes blocks again, one at a
    time, that can take more than the logits, which are gone by then.
    """
    tokens = batch * length
    weights = weight_bytes(config, "float32", mtp=True)
    kept = 4 * tokens * kept_numbers(config, recompute=recompute)
    needs = {"weights": weights, "gradients": weights, "moments": 2 * weights, "kept for backward": kept}
    heads = 1 + config.num_nextn_predict_layers
    needs["gradients of heads"] = 4 * heads * config.vocab_size * config.hidden_size
    logits = 4 * min(tokens, LOGITS) * config.vocab_size
    again = 4 * tokens * largest_block(config) if recompute else 0
    return needs | ({"one block, computed again": again} if again > logits else {"logits": logits})


def largest_block(config: DeepSeekConfig) -> int:
    """Numbers that one token takes in the largest of the parts that are computed again: what it keeps, and
    the gradients that its feed-forward has at once.
    """
    layers, dense, d = config.num_hidden_layers, config.first_k_dense_replace, config.hidden_size
    width = {False: config.intermediate_size, True: config.num_experts_per_tok * config.moe_intermediate_size}
    there = {False: dense > 0, True: layers > dense}
    found = [kept_in_block(config, moe=moe) + 3 * width[moe] for moe in width if there[moe]]
    if config.num_nextn_predict_layers:
        found.append(kept_in_block(config, moe=True) + 3 * width[True] + 6 * d)
    return max(found) + 2 * d


def memory_to_serve(config: DeepSeekConfig, batch: int, length: int, kind: str) -> dict[str, int]:
    """Bytes by purpose: weights without MTP modules, and the caches of `batch` sequences of that length."""
    cache = batch * length * cache_bytes(config, kind)
    return {"weights": weight_bytes(config, kind), "cache": cache}
