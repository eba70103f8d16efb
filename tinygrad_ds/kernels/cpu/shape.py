"""Joining and cutting along the last axis, fused where there is much to copy.

concatenate copies rows from where they lie, in transposed and repeated arrays too, on all cores; NumPy uses
one. The gradient of split is the parts of g side by side. Where a kernel wrote them so already, as that of
swiglu does, they are views of the array that is wanted, and nothing is copied.
"""

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARALLEL_FROM, PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import row_start, spread
from tinygrad_ds.ops import shape


def concatenate(*arrays, axis=0):
    lead, ndim = arrays[0].shape[:-1], arrays[0].ndim
    if (
        axis not in (-1, ndim - 1)
        or any(array.shape[:-1] != lead for array in arrays)
        or not _worthwhile(arrays)
    ):
        return NotImplemented
    return _side_by_side(arrays), shape.JoinSaved(tuple(map(shape.form, arrays)), ndim - 1)


concatenate_backward = shape.concatenate.backward


def split(x, *, sections, axis=0):
    return shape.split.forward(x, sections=sections, axis=axis)


def split_backward(saved, g):
    x, cuts = saved
    if len(cuts[0]) != len(x.shape) or any(part is None for part in g) or not _in_turn(cuts, g, x.shape[-1]):
        return shape.split.backward(saved, g)
    whole = g[0].base
    if _are_cut_from(whole, x, cuts, g):
        return (whole[...],)
    return (_side_by_side(g),) if _worthwhile(g) else shape.split.backward(saved, g)


def _worthwhile(arrays):
    return (
        sum(array.size for array in arrays) >= PARALLEL_FROM and covered(*arrays) and 2 <= arrays[0].ndim <= 4
    )


def _in_turn(cuts, g, size):
    """Whether every part begins where the one before ends, and together they are the whole last axis."""
    ends = all(a[-1].stop == b[-1].start for a, b in zip(cuts, cuts[1:]))
    return ends and sum(part.shape[-1] for part in g) == size


def _are_cut_from(whole, x, cuts, g):
    """Whether the parts g are views of `whole`, an array of the form x, each at the place of its cut."""
    if whole is None or (whole.shape, whole.dtype) != x or not whole.flags.carray:
        return False
    return all(part.base is whole and _place(part) == _place(whole[cut]) for part, cut in zip(g, cuts))


def _place(array):
    return array.__array_interface__["data"], array.shape, array.strides


def _side_by_side(arrays):
    width, offset = sum(array.shape[-1] for array in arrays), 0
    y = np.empty((*arrays[0].shape[:-1], width), arrays[0].dtype)
    for array in arrays:
        _copy_rows(y.reshape(-1), width, offset, array.shape[-1], *spread(array))
        offset += array.shape[-1]
    return y


@kernel("(T[::1], int64, int64, int64, T[::1], int64[::1])")
def _copy_rows(y, step, offset, width, memory, layout):
    count, inner = y.size // step, layout[1]
    for part in prange(PARTS):
        n, stop = share(part, count), share(part + 1, count)
        while n < stop:
            start = row_start(n, layout)
            for _ in range(min(inner - n % inner, stop - n)):
                place = n * step + offset
                row, copy = memory[start : start + width], y[place : place + width]
                for i in range(width):
                    copy[i] = row[i]
                n, start = n + 1, start + layout[4]
