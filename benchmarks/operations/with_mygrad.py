"""Elementary operations in MyGrad, its guard against writes to what it still needs switched off."""

from collections.abc import Callable
from typing import Any

import mygrad as mg
import numpy as np
from mygrad.nnet import softmax, softmax_crossentropy

from benchmarks.operations.cases import EPS

mg.turn_memory_guarding_off()
ONE, SMALL = np.float32(1), np.float32(EPS)  # Python's numbers would make everything float64

FORMS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "matmul": lambda x, y: mg.matmul(x, y),
    "sum": lambda x: x.sum(axis=-1),
    "softmax": lambda x: softmax(x, axis=-1),
    "rmsnorm": lambda x, w: x / mg.sqrt(mg.mean(mg.square(x), axis=-1, keepdims=True) + SMALL) * w,
    "swiglu": lambda x, y: x / (ONE + mg.exp(-x)) * y,
    "cross_entropy": lambda x, t: softmax_crossentropy(x, t),
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"mygrad": mg.__version__}


def prepare(case: str, arrays: list[np.ndarray], further: list[np.ndarray], g: np.ndarray) -> Callable:
    """A function of nothing that gives the value and the gradients."""
    form = FORMS[case]

    def call() -> list[Any]:
        leaves = [mg.tensor(array, copy=False) for array in arrays]
        y = form(*leaves, *further)
        y.backward(g)
        return [y.data, *(leaf.grad for leaf in leaves)]

    return call
