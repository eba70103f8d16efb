"""What undoes broadcasting and promotion: a gradient gets the shape and dtype of its argument."""

from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds.device import Array
from tinygrad_ds.dtypes import is_floating


class Form(NamedTuple):
    """Shape and dtype of an array, kept where backward needs no more of it."""

    shape: tuple[int, ...]
    dtype: np.dtype


def form(array: Array) -> Form:
    """The form of an array."""
    return Form(array.shape, array.dtype)


def sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum `array` down to `shape`, from which it was broadcast.

    If y was made by repeating x, then x reaches the loss once through each copy, and dL/dx is the sum of
    dL/dy over all copies: over the axes that broadcasting put in front, and over those of size 1 that it
    stretched.
    """
    if array.shape == shape:
        return array
    in_front = array.ndim - len(shape)
    stretched = tuple(
        axis + in_front for axis, size in enumerate(shape) if size == 1 and array.shape[axis + in_front] != 1
    )
    return array.sum(axis=(*range(in_front), *stretched), dtype=array.dtype).reshape(shape)


def fit(grad: Array, argument: Any) -> Array | None:
    """`grad` summed and cast to the shape and dtype of `argument`, an array or its form; None for integers.

    The cast undoes promotion: in float32 + float64 the float32 argument gets a float32 gradient.
    """
    if not is_floating(argument.dtype):
        return None
    return sum_to(grad, argument.shape).astype(argument.dtype, copy=False)
