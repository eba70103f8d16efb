"""Quantising in tiles beside NumPy with ml_dtypes and a copy; Linear and a training step beside float32."""

import time
from typing import Any

import ml_dtypes
import numpy as np

import tinygrad_ds as tg
from benchmarks.conductor import spread
from benchmarks.ours import Ours
from benchmarks.speed import BATCH, TIME, Say
from layers.precision import EXACT, Bfloat16, Fp8, Products, precision
from train import AdamW

SIDE, LARGEST = 2048, 448
SHAPES = ((2048, 256, 1024), (2048, 1024, 256), (4096, 512, 512))  # rows, in, out


def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in NumPy, rounded by ml_dtypes."""
    tiles = x.reshape(len(x), -1, 128)
    scales = np.maximum(np.abs(tiles).max(axis=-1, keepdims=True), np.float32(1e-4)) / np.float32(LARGEST)
    return (tiles / scales).astype(ml_dtypes.float8_e4m3fn).reshape(x.shape), scales[..., 0]


def measure(config: dict[str, Any], rounds: int, say: Say) -> dict[str, Any]:
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
    say("training steps")
    ways: dict[str, Products] = {"float32": EXACT, "FP8": Fp8(), "bfloat16": Bfloat16()}
    steps = in_turns({name: training(config, products) for name, products in ways.items()}, rounds)
    return {"quantise": rows, "linear": linear, "step": steps}


def training(config: dict[str, Any], products: Products) -> Any:
    """A training step of the benchmark's model, its products so."""
    ours = Ours(config, "fused")
    ours.build()
    if isinstance(products, Fp8):
        ours.optimizer = AdamW(ours.model, lr=1e-3, weight_decay=0.1, moments="bfloat16")

    def step() -> None:
        with precision(products):
            ours.train(BATCH, TIME)

    return step


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
