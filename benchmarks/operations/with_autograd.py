"""Elementary operations in autograd (HIPS)."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import make_vjp
from autograd.scipy.special import logsumexp

from benchmarks.operations.cases import EPS


def softmax(x: Any) -> Any:
    """exp(x) over its sum."""
    e = anp.exp(x - anp.max(x, axis=-1, keepdims=True))
    return e / anp.sum(e, axis=-1, keepdims=True)


FORMS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "matmul": lambda x, y: anp.dot(x, y),
    "sum": lambda x: anp.sum(x, axis=-1),
    "softmax": softmax,
    "rmsnorm": lambda x, w: x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + EPS) * w,
    "swiglu": lambda x, y: x / (1 + anp.exp(-x)) * y,
    "cross_entropy": lambda x, t: anp.mean(logsumexp(x, axis=-1) - x[anp.arange(len(t)), t]),
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"autograd": version("autograd")}


def prepare(case: str, arrays: list[np.ndarray], further: list[np.ndarray], g: np.ndarray) -> Callable:
    """A function of nothing that gives the value and the gradients."""
    form, cotangent = FORMS[case], g if g.ndim else g[()]

    def call() -> list[Any]:
        vjp, y = make_vjp(lambda leaves: form(*leaves, *further))(tuple(arrays))
        return [y, *vjp(cotangent)]

    return call
