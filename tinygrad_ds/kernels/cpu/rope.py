"""Rotary position embedding, fused: every pair of x is read, turned and written once.

x is read where it lies, since queries come as a slice of a wider array. cos and sin are not repeated along
the axes that share them: there the step from one of their rows to the next is 0. Backward is the same turn
the other way.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous, layout, row_start, spread


class RopeSaved(NamedTuple):
    """The angles, and where the row for each row of x starts."""

    cos: np.ndarray
    sin: np.ndarray
    layout: np.ndarray
    interleaved: bool


def rope(x, cos, sin, *, interleaved=True):
    if not covered(x, cos, sin) or not _fits(x, cos, sin):
        return NotImplemented
    steps = [0 if size == 1 else prod(cos.shape[axis + 1 :]) for axis, size in enumerate(cos.shape[:-1])]
    cos, sin = contiguous(cos).reshape(-1), contiguous(sin).reshape(-1)
    saved = RopeSaved(cos, sin, layout(x.shape, steps), bool(interleaved))
    return _turned(x, saved, 1), saved


def rope_backward(saved, g):
    return _turned(g, saved, -1), None, None


def _fits(x, cos, sin):
    """Whether x has at most four axes and the angles broadcast to it; anything else is the reference's."""
    if not 1 <= cos.ndim <= x.ndim <= 4 or cos.shape != sin.shape or 2 * cos.shape[-1] != x.shape[-1]:
        return False
    own, full = cos.shape[:-1], x.shape[x.ndim - cos.ndim : -1]
    return all(size in (1, whole) for size, whole in zip(own, full))


def _turned(x, saved, direction):
    y = np.empty(x.shape, x.dtype)
    _turn(y.reshape(-1), x.shape[-1], *spread(x), *saved[:3], direction, saved.interleaved)
    return y


@kernel("(T[::1], int64, T[::1], int64[::1], T[::1], T[::1], int64[::1], T, boolean)")
def _turn(y, d, x, x_layout, cos, sin, angle_layout, direction, interleaved):
    half, count, inner = d // 2, y.size // max(d, 1), x_layout[1]
    for part in prange(PARTS):
        n, stop = share(part, count), share(part + 1, count)
        while n < stop:
            x_at, angle_at = row_start(n, x_layout), row_start(n, angle_layout)
            for _ in range(min(inner - n % inner, stop - n)):  # along the inner axis both move by one step
                x_n, y_n = x[x_at : x_at + d], y[n * d : n * d + d]
                cos_n, sin_n = cos[angle_at : angle_at + half], sin[angle_at : angle_at + half]
                if interleaved:
                    for j in range(half):
                        a, b, c, s = x_n[2 * j], x_n[2 * j + 1], cos_n[j], sin_n[j] * direction
                        y_n[2 * j], y_n[2 * j + 1] = a * c - b * s, a * s + b * c
                else:
                    for j in range(half):
                        a, b, c, s = x_n[j], x_n[half + j], cos_n[j], sin_n[j] * direction
                        y_n[j], y_n[half + j] = a * c - b * s, a * s + b * c
                n, x_at, angle_at = n + 1, x_at + x_layout[4], angle_at + angle_layout[4]
