"""What this machine can do at most: products and bytes per second, measured in the run that quotes them."""

import time

import numpy as np


def best_of(function, rounds: int = 7) -> float:
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


def bandwidth(megabytes: int = 256) -> float:
    """Bytes per second of copying a large array, read and write counted."""
    source = np.ones(megabytes * 2**18, dtype=np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / best_of(lambda: np.copyto(target, source))


def read_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second of summing a large array in one thread: the limit of reading weights for one token."""
    source = np.ones(megabytes * 2**18, dtype=np.float32)
    return source.nbytes / best_of(lambda: source.sum())


def training_flop(config: dict, batch: int, time: int) -> float:
    """FLOP of one training step: three times the forward's products, attention counted in full."""
    d, h = config["hidden_size"], config["num_attention_heads"]
    r_q, r = config["q_lora_rank"], config["kv_lora_rank"]
    d_n, d_r, d_v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    query = d * r_q + r_q * h * (d_n + d_r) if r_q else d * h * (d_n + d_r)
    attention = query + d * (r + d_r) + r * h * (d_n + d_v) + h * d_v * d + time * h * (d_n + d_r + d_v)
    active = config["num_experts_per_tok"] + config["n_shared_experts"]
    moe = d * config["n_routed_experts"] + 3 * active * d * config["moe_intermediate_size"]
    mlp = 3 * d * config["intermediate_size"]
    per_token = layers * attention + dense * mlp + (layers - dense) * moe + d * config["vocab_size"]
    return 3 * 2 * per_token * batch * time
