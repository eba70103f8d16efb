"""Rotary position embedding on the device: launches of rope.cu."""

from typing import NamedTuple

import cupy
import numpy as np

from tinygrad_ds.kernels.cuda.common import blocks, covered, in_pieces, launch, steps


class RopeSaved(NamedTuple):
    """What rope_backward needs."""

    cos: cupy.ndarray  # (..., d/2)
    sin: cupy.ndarray  # (..., d/2)
    interleaved: bool


def rope(x, cos, sin, *, interleaved=True):
    d = x.shape[-1]
    fits = x.ndim <= 4 and 2 * cos.shape[-1] == d == 2 * sin.shape[-1]
    if not fits or not covered(x, cos, sin, narrow=True) or not _repeats(cos, x) or not _repeats(sin, x):
        return NotImplemented
    saved = RopeSaved(in_pieces(cos), in_pieces(sin), interleaved)
    return _rotate(x, saved, 1.0), saved


def rope_backward(saved, g):
    return _rotate(g, saved, -1.0), None, None


def _repeats(angles, x):
    """Whether the leading axes of `angles` broadcast to those of x and need no new ones."""
    leading = x.shape[:-1]
    return angles.ndim <= x.ndim and np.broadcast_shapes(angles.shape[:-1], leading) == leading


def _rotate(x, saved, turn):
    cos, sin, interleaved = saved
    x, half = in_pieces(x), x.shape[-1] // 2
    y, rows = cupy.empty(x.shape, x.dtype), x.size // x.shape[-1]
    sizes = (1, 1, 1, *x.shape[:-1])[-2:]
    layout = *steps(x, 3), *steps(cos, 3), *steps(sin, 3)
    arguments = x, cos, sin, y, rows, *sizes, half, *layout, int(interleaved), turn
    launch("rope.rotate", (blocks(rows * half, 256),), (256,), *arguments, dtype=x.dtype)
    return y
