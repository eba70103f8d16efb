"""What this machine can do at most: products and bytes per second, measured in the run that quotes them."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

LARGE = 256 * 2**20  # bytes: more than any cache holds


def best_of(function: Callable[[], Any], rounds: int = 7) -> float:
    """The shortest of `rounds` runs, in seconds: for limits, where interruptions only ever add."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def sgemm_rate(size: int = 1024) -> float:
    """FLOP per second of a float32 product size x size x size with all threads."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(size, size)).astype(np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2 * size**3 / best_of(lambda: np.matmul(a, b, out=out))


def fastest(function: Callable[..., Any], *arrays: np.ndarray) -> float:
    """Seconds of function(*arrays) in one thread or cut into a piece for each core, whichever takes less."""
    cores = len(os.sched_getaffinity(0))
    pieces = list(zip(*(np.array_split(array, cores) for array in arrays), strict=True))
    with ThreadPoolExecutor(cores) as pool:
        many = best_of(lambda: list(pool.map(lambda piece: function(*piece), pieces)))
    return min(many, best_of(lambda: function(*arrays)))


def copy_seconds(moved: float) -> float:
    """Seconds to move this many bytes in a copy that reads half of them and writes the other half."""
    source = np.ones(max(int(moved) // 8, 1), dtype=np.float32)
    return fastest(np.copyto, np.empty_like(source), source)


def read_bandwidth() -> float:
    """Bytes per second of reading an array that no cache holds: of its product with itself, by BLAS."""
    source = np.ones(LARGE // 4, dtype=np.float32)
    return source.nbytes / fastest(lambda part: np.dot(part, part), source)


def per_token(config: dict[str, Any], time: int) -> dict[str, float]:
    """Multiply-adds of one token's products, by part; `time` keys are seen by a query."""
    d, h = config["hidden_size"], config["num_attention_heads"]
    r_q, r = config["q_lora_rank"], config["kv_lora_rank"]
    d_n, d_r, d_v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    query = d * r_q + r_q * h * (d_n + d_r) if r_q else d * h * (d_n + d_r)
    attention = query + d * (r + d_r) + r * h * (d_n + d_v) + h * d_v * d
    expert = 3 * d * config["moe_intermediate_size"]
    return {
        "attention's weights": layers * attention,
        "scores and values": layers * time * h * (d_n + d_r + d_v),
        "dense": dense * 3 * d * config["intermediate_size"],
        "router": (layers - dense) * d * config["n_routed_experts"],
        "shared expert": (layers - dense) * config["n_shared_experts"] * expert,
        "chosen experts": (layers - dense) * config["num_experts_per_tok"] * expert,
        "head": d * config["vocab_size"],
    }


def training_flop(config: dict[str, Any], batch: int, time: int) -> float:
    """FLOP of one training step: three times the forward's products, attention counted in full."""
    return 3 * 2 * sum(per_token(config, time).values()) * batch * time


def decoding_bytes(config: dict[str, Any], batch: int, context: int) -> float:
    """Bytes that a step must read: the weights, of the experts that some row chose, and the latent cache.

    Rows choose their experts as if by lot, so that one of E is left alone by all of them with probability
    (1 - K/E)^batch.
    """
    parts = per_token(config, 0)
    e, k = config["n_routed_experts"], config["num_experts_per_tok"]
    parts["chosen experts"] *= (1 - (1 - k / e) ** batch) * e / k
    latents = config["num_hidden_layers"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"])
    return 4 * (sum(parts.values()) + batch * context * latents)
