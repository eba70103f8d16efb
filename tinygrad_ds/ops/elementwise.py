"""Elementwise primitives. For y = f(x) entry by entry, dL/dx = dL/dy f'(x): each backward below is one such line.

With two arguments the shapes broadcast, and each gradient is summed back to its argument's shape (ops/broadcast.py).
"""

from typing import Any, NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.dtypes import dtype as as_dtype
from tinygrad_ds.ops.broadcast import sum_to
from tinygrad_ds.primitive import primitive


class ShapesSaved(NamedTuple):
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]


class OperandsSaved(NamedTuple):
    a: Array
    b: Array


@primitive
def add(a, b):
    """y = a + b."""
    return a + b, ShapesSaved(a.shape, b.shape)


@add.backward
def add_backward(saved, g):
    """dy/da = 1 and dy/db = 1, so both get g."""
    return sum_to(g, saved.a_shape), sum_to(g, saved.b_shape)


@primitive
def multiply(a, b):
    """y = a b."""
    return a * b, OperandsSaved(a, b)


@multiply.backward
def multiply_backward(saved, g):
    """dy/da = b and dy/db = a."""
    a, b = saved
    return sum_to(g * b, a.shape), sum_to(g * a, b.shape)
