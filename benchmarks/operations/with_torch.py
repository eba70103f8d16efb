"""Elementary operations in PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.operations.cases import EPS

FORMS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "matmul": lambda x, y: x @ y,
    "sum": lambda x: x.sum(-1),
    "softmax": lambda x: torch.softmax(x, -1),
    "rmsnorm": lambda x, w: F.rms_norm(x, w.shape, w, EPS),
    "swiglu": lambda x, y: F.silu(x) * y,
    "cross_entropy": lambda x, t: F.cross_entropy(x, t),
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"torch": torch.__version__}


def prepare(case: str, arrays: list[np.ndarray], further: list[np.ndarray], g: np.ndarray) -> Callable:
    """A function of nothing that gives the value and the gradients."""
    leaves = [torch.from_numpy(array).requires_grad_() for array in arrays]
    others, cotangent, form = [torch.from_numpy(array) for array in further], torch.from_numpy(g), FORMS[case]

    def call() -> list[Any]:
        y = form(*leaves, *others)
        return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]

    return call
