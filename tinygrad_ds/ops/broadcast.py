"""The one helper that undoes broadcasting."""

from tinygrad_ds.device import Array


def sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Sum `array` down to `shape`, from which it was broadcast.

    If y was made by repeating x, then x reaches the loss once through each copy, and dL/dx is the sum of dL/dy over all
    copies: over the axes that broadcasting put in front, and over those of size 1 that it stretched.
    """
    if array.shape == shape:
        return array
    in_front = array.ndim - len(shape)
    stretched = tuple(
        axis + in_front for axis, size in enumerate(shape) if size == 1 and array.shape[axis + in_front] != 1
    )
    return array.sum(axis=(*range(in_front), *stretched), dtype=array.dtype).reshape(shape)
