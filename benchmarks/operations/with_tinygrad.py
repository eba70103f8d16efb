"""Elementary operations in tinygrad: its jit, on the CPU, with the clang of the package `ziglang` if need be.

tinygrad writes C for every operation and asks the compiler named by CC, clang by default.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.operations.cases import EPS


def compiler() -> str:
    """A program that takes clang's options: clang itself, or a script that calls the one in `ziglang`."""
    if found := os.environ.get("CC") or shutil.which("clang"):
        return found
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = Path(folder) / "clang"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang clang "$@"\n')
    script.chmod(0o755)
    return str(script)


os.environ["CC"] = compiler()
from tinygrad import Device, Tensor, TinyJit  # noqa: E402 - it reads CC

FORMS: dict[str, Callable] = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "matmul": lambda x, y: x @ y,
    "sum": lambda x: x.sum(-1),
    "softmax": lambda x: x.softmax(-1),
    "rmsnorm": lambda x, w: x * ((x * x).mean(-1, keepdim=True) + EPS).rsqrt() * w,
    "swiglu": lambda x, y: x.silu() * y,
    "cross_entropy": lambda x, t: x.sparse_categorical_crossentropy(t),
}


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {"tinygrad": version("tinygrad")}


def prepare(case: str, arrays: list[np.ndarray], further: list[np.ndarray], g: np.ndarray) -> Callable:
    """A function of nothing that gives the value and the gradients."""
    form = FORMS[case]
    leaves, others, (cotangent,) = (
        [Tensor(array).realize() for array in group] for group in (arrays, further, [g])
    )

    @TinyJit
    def differentiate(*leaves: Any) -> list[Any]:
        y = form(*leaves, *others)
        made = [y, *y.gradient(*leaves, gradient=cotangent)]
        Tensor.realize(*made)
        return made

    def call() -> list[Any]:
        made = differentiate(*leaves)
        Device[Device.DEFAULT].synchronize()
        return made

    return call
