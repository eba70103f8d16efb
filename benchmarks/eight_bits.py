"""Quantising in tiles beside NumPy with ml_dtypes and a copy; Linear in FP8 beside Linear in float32."""

import time
from typing import Any

import ml_dtypes
import numpy as np

import tinygrad_ds as tg
from benchmarks.conductor import spread
from benchmarks.speed import Say

SIDE, LARGEST = 2048, 448
SHAPES = ((2048, 256, 1024), (2048, 1024, 256), (4096, 512, 512))  # rows, in, out


def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, rounded by ml_dtypes."""
    tiles = x.reshape(len(x), -1, 128)
    scales = np.maximum(np.abs(tiles).max(axis=-1, keepdims=True), np.float32(1e-4)) / np.float32(LARGEST)
    return (tiles / scales).astype(ml_dtypes.float8_e4m3fn).reshape(x.shape), scales[..., 0]


def measure(rounds: int, say: Say) -> dict[str, Any]:
    """Seconds of each, the forms in turn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
    twin = tg.primitives["quantize"].fused["cpu"].forward
    say("quantising")
    target = np.empty_like(x)  # the same bytes: x is read, and as many numbers are written
    calls = {
        "fused": lambda: twin(x),
        "copy": lambda: np.copyto(target, x),
        "NumPy and ml_dtypes": lambda: by_hand(x),
    }
    rows = in_turns(calls, rounds)
    linear = {}
    for shape in SHAPES:
        say("Linear of {} x {} -> {}".format(*shape))
        linear["{} x {} -> {}".format(*shape)] = in_turns(
            {name: step_of(name, *shape) for name in ("linear", "fp8_linear")}, rounds
        )
    return {"quantise": rows, "linear": linear}


def step_of(name: str, rows: int, inner: int, outer: int) -> Any:
    """Forward and backward of one primitive."""
    rng = np.random.default_rng(0)
    x, weight, g = (
        rng.normal(size=shape).astype(np.float32) for shape in ((rows, inner), (outer, inner), (rows, outer))
    )
    primitive = tg.primitives[name]
    pair = primitive.fused["cpu"] if "cpu" in primitive.fused else primitive
    return lambda: pair.backward(pair.forward(x, weight)[1], g)


def in_turns(calls: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The spread of seconds of each call, the first of which is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: spread(taken[1:]) for name, taken in seconds.items()}
