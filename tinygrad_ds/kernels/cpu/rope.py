"""Rotary position embedding, fused: a copy of x is turned in place, pair by pair, each row once.

NumPy makes the copy, which takes any layout (queries come as a slice of a wider array). cos and sin are not
repeated along the axes that share them: `steps` says how far their row moves along each leading axis of x,
and 0 stands for a shared one. Backward is the same turn the other way.
"""

from math import prod
from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARTS, as_rows, covered, kernel, share


class RopeSaved(NamedTuple):
    """The angles as rows, and their steps along three leading axes of x."""

    cos: np.ndarray  # (angles, d/2)
    sin: np.ndarray  # (angles, d/2)
    steps: tuple[int, int, int]
    interleaved: bool


def rope(x, cos, sin, *, interleaved=True):
    if not covered(x, cos, sin) or not _fits(x, cos, sin):
        return NotImplemented
    steps = tuple(
        0 if size == 1 else prod(cos.shape[axis + 1 : -1]) for axis, size in enumerate(cos.shape[:-1])
    )
    steps = (0,) * (3 - len(steps)) + steps
    saved = RopeSaved(as_rows(cos), as_rows(sin), steps, bool(interleaved))
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
    y = np.array(x, order="C")
    second, third = ((1, 1) + x.shape[:-1])[-2:]
    _turn(as_rows(y), saved.cos, saved.sin, direction, second, third, *saved.steps, saved.interleaved)
    return y


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1], T, int64, int64, int64, int64, int64, boolean)")
def _turn(y, cos, sin, direction, second, third, step1, step2, step3, interleaved):
    half = y.shape[1] // 2
    for part in prange(PARTS):
        for n in range(share(part, len(y)), share(part + 1, len(y))):
            m = n // (second * third) * step1 + n // third % second * step2 + n % third * step3
            if interleaved:
                for j in range(half):
                    a, b = y[n, 2 * j], y[n, 2 * j + 1]
                    c, s = cos[m, j], sin[m, j] * direction
                    y[n, 2 * j], y[n, 2 * j + 1] = a * c - b * s, a * s + b * c
            else:
                for j in range(half):
                    a, b = y[n, j], y[n, half + j]
                    c, s = cos[m, j], sin[m, j] * direction
                    y[n, j], y[n, half + j] = a * c - b * s, a * s + b * c
