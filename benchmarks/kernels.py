"""Every fused twin beside its reference, and beside the limit of memory or of products.

The shapes are those of the bench model.
"""

import time
from typing import Any

import numpy as np

import tinygrad_ds as tg
from benchmarks.conductor import spread
from benchmarks.limits import bandwidth, sgemm_rate
from benchmarks.speed import Say
from tinygrad_ds.tape import arrays_in

TOKENS, HIDDEN, VOCAB, HEADS, EXPERTS, CHOSEN = 2048, 256, 4096, 8, 16, 4


def cases() -> dict[str, tuple[list[np.ndarray], dict[str, Any], float]]:
    """name -> arrays, options, FLOP of the products in forward and backward (0 where memory is the limit)."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    angles = rng.normal(size=(256, 8)).astype(np.float32)
    chosen = np.sort(rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, 1)), axis=1)[:, :CHOSEN], axis=1)
    sent = tg.dispatch.forward(draw(TOKENS, HIDDEN), chosen, num_experts=EXPERTS)[0]
    heads = 8, HEADS, 256
    attention_flop = 3 * 2 * np.prod(heads) * 256 * (48 + 32) / 2  # the masked half is skipped
    grouped_flop = 3 * 2 * TOKENS * CHOSEN * HIDDEN * 256
    router = {"num_experts_per_tok": CHOSEN, "n_group": 4, "topk_group": 2}
    return {
        "rmsnorm": ([draw(TOKENS, HIDDEN), draw(HIDDEN)], {}, 0),
        "rope": ([draw(8, HEADS, 256, 16), np.cos(angles), np.sin(angles)], {}, 0),
        "swiglu": ([draw(TOKENS * CHOSEN, 128), draw(TOKENS * CHOSEN, 128)], {}, 0),
        "softmax": ([draw(TOKENS, VOCAB)], {}, 0),
        "log_softmax": ([draw(TOKENS, VOCAB)], {}, 0),
        "cross_entropy": ([draw(TOKENS, VOCAB), rng.integers(0, VOCAB, TOKENS)], {}, 0),
        "attention": ([draw(*heads, 48), draw(*heads, 48), draw(*heads, 32)], {}, attention_flop),
        "router_selection": ([draw(TOKENS, EXPERTS), draw(EXPERTS)], router, 0),
        "dispatch": ([draw(TOKENS, HIDDEN), chosen], {"num_experts": EXPERTS}, 0),
        "grouped_linear": ([sent.rows, draw(EXPERTS, 256, HIDDEN), sent.offsets], {}, grouped_flop),
        "combine": ([draw(TOKENS * CHOSEN, HIDDEN), draw(TOKENS, CHOSEN), sent.position], {}, 0),
        "embedding": ([draw(VOCAB, HIDDEN), rng.integers(0, VOCAB, TOKENS)], {}, 0),
    }


def once(pair: Any, arrays: list[np.ndarray], options: dict[str, Any]) -> tuple[float, float, int, int]:
    """Seconds forward and backward, bytes that must move at least, bytes saved."""
    start = time.perf_counter()
    result, saved = pair.forward(*arrays, **options)
    middle = time.perf_counter()
    outputs = result if isinstance(result, tuple) else (result,)
    cotangents = tuple(np.ones_like(y) if np.asarray(y).dtype.kind == "f" else None for y in outputs)
    ready = time.perf_counter()
    grads = pair.backward(saved, cotangents if isinstance(result, tuple) else cotangents[0])
    end = time.perf_counter()
    moved = [
        *arrays,
        *outputs,
        *arrays,
        *(c for c in cotangents if c is not None),
        *(g for g in grads if g is not None),
    ]
    saved_bytes = sum(array.nbytes for array in arrays_in(saved))
    return middle - start, end - ready, sum(np.asarray(a).nbytes for a in moved), saved_bytes


def measure(rounds: int, say: Say) -> dict[str, Any]:
    """Medians of both pairs in turn, their ratio, and the twin's share of the limit."""
    byte_rate, flop_rate = bandwidth(), sgemm_rate()
    rows = {}
    for name, (arrays, options, flop) in cases().items():
        say(name)
        primitive = tg.primitives[name]
        if "cpu" not in primitive.fused:
            continue
        pairs = {"reference": primitive, "fused": primitive.fused["cpu"]}
        runs: dict[str, list] = {which: [] for which in pairs}
        for _ in range(rounds + 1):
            for which, pair in pairs.items():
                runs[which].append(once(pair, arrays, options))
        row: dict[str, Any] = {}
        for which, taken in runs.items():
            row[which] = {
                "forward": spread([r[0] for r in taken[1:]]),
                "backward": spread([r[1] for r in taken[1:]]),
                "saved_bytes": taken[-1][3],
            }
        seconds = {w: row[w]["forward"]["median"] + row[w]["backward"]["median"] for w in pairs}
        row["times_faster"] = seconds["reference"] / seconds["fused"]
        limit = flop / flop_rate if flop else runs["fused"][-1][2] / byte_rate
        row["share_of_limit"], row["limit"] = limit / seconds["fused"], "products" if flop else "memory"
        rows[name] = row
    return {"bandwidth_bytes_per_second": byte_rate, "sgemm_flop_per_second": flop_rate, "kernels": rows}
