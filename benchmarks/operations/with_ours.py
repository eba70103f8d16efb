"""Elementary operations on our tape, with fused kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np

import tinygrad_ds as tg
from benchmarks.operations.cases import EPS

FORMS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "matmul": lambda x, y: x @ y,
    "sum": lambda x: x.sum(axis=-1),
    "softmax": lambda x: tg.softmax(x),
    "rmsnorm": lambda x, w: tg.rmsnorm(x, w, eps=EPS),
    "swiglu": lambda x, y: tg.swiglu(x, y),
    "cross_entropy": lambda x, t: tg.cross_entropy(x, t),
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"numpy": np.__version__}


def prepare(case: str, arrays: list[np.ndarray], further: list[np.ndarray], g: np.ndarray) -> Callable:
    """A function of nothing that gives the value and the gradients."""
    form = FORMS[case]

    def call() -> list[Any]:
        leaves = [tg.Tensor(array, requires_grad=True) for array in arrays]
        y = form(*leaves, *further)
        y.backward(g)
        return [y.data, *(leaf.grad for leaf in leaves)]

    return call
