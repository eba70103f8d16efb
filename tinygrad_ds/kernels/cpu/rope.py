"""Rotary position embedding, fused: a copy of x is turned in place, pair by pair, each row read and written
once.

NumPy makes the copy, which takes any layout (queries come as a slice of a wider array). cos and sin are not
repeated for the axes along which they are shared: those have size 1 and their only entry is read each time.
Backward is the same turn the other way.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARTS, contiguous, covered, kernel, share


class RopeSaved(NamedTuple):
    """The angles, in four dimensions."""

    cos: np.ndarray  # (.., .., .., d/2)
    sin: np.ndarray  # (.., .., .., d/2)
    interleaved: bool


def rope(x, cos, sin, *, interleaved=True):
    if not covered(x, cos, sin) or not _fits(x, cos, sin):
        return NotImplemented
    saved = RopeSaved(_in_four(contiguous(cos)), _in_four(contiguous(sin)), bool(interleaved))
    return _turned(x, saved, 1), saved


def rope_backward(saved, g):
    return _turned(g, saved, -1), None, None


def _fits(x, cos, sin):
    """Whether x has at most four axes and the angles broadcast to it; anything else is the reference's."""
    if not 1 <= cos.ndim <= x.ndim <= 4 or cos.shape != sin.shape or 2 * cos.shape[-1] != x.shape[-1]:
        return False
    shared = x.shape[x.ndim - cos.ndim : -1]
    return all(own in (1, full) for own, full in zip(cos.shape[:-1], shared))


def _in_four(array):
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _turned(x, saved, direction):
    y = np.array(x, order="C")
    _turn(_in_four(y), saved.cos, saved.sin, direction, saved.interleaved)
    return y


@kernel("(T[:, :, :, ::1], T[:, :, :, ::1], T[:, :, :, ::1], T, boolean)")
def _turn(y, cos, sin, direction, interleaved):
    inner = y.shape[1] * y.shape[2]
    count = y.shape[0] * inner
    half = y.shape[3] // 2
    for part in prange(PARTS):
        for n in range(share(part, count), share(part + 1, count)):
            a, b, c = n // inner, n % inner // y.shape[2], n % y.shape[2]
            row = y[a, b, c]
            cos_row = cos[min(a, cos.shape[0] - 1), min(b, cos.shape[1] - 1), min(c, cos.shape[2] - 1)]
            sin_row = sin[min(a, cos.shape[0] - 1), min(b, cos.shape[1] - 1), min(c, cos.shape[2] - 1)]
            if interleaved:
                for j in range(half):
                    first, second, s = row[2 * j], row[2 * j + 1], sin_row[j] * direction
                    row[2 * j] = first * cos_row[j] - second * s
                    row[2 * j + 1] = first * s + second * cos_row[j]
            else:
                for j in range(half):
                    first, second, s = row[j], row[half + j], sin_row[j] * direction
                    row[j] = first * cos_row[j] - second * s
                    row[half + j] = first * s + second * cos_row[j]
