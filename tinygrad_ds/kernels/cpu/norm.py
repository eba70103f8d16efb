"""RMSNorm, fused: y = x r w with r = (mean(x^2) + eps)^(-1/2) for each row.

Forward reads a row twice, the second time from the cache. Backward likewise: once for mean(h x_hat), once for
both gradients. The weight's gradient is a sum over rows: every part adds up its own, and the parts are
added in order. What is kept is y, since whatever reads it keeps it too, so that x may be forgotten:
x_hat = y / w. Only where a weight is next to nothing, or without bounds, x_hat itself is kept.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import LIGHT_PARALLEL_FROM, PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import as_rows, contiguous

SMALLEST = 1e-12  # of the weights through which x_hat is found again, and one over the largest


class RMSNormSaved(NamedTuple):
    """What gives x_hat = kept back, and one over the root mean square of each row."""

    kept: np.ndarray  # (rows, d)  y, or x_hat
    back: np.ndarray  # (d,)  1 / w, or ones
    r: np.ndarray  # (rows,)
    weight: np.ndarray  # (d,)


def rmsnorm(x, weight, *, eps=1e-6):
    if not covered(x, weight) or weight.ndim != 1 or weight.shape != x.shape[-1:]:
        return NotImplemented
    rows, weight, r = as_rows(x), contiguous(weight), np.empty(x.shape[:-1], x.dtype).reshape(-1)
    y = np.empty(x.shape, x.dtype)
    kept = as_rows(y)
    _rmsnorm(rows, weight, eps, kept, r)
    sizes = np.abs(weight)
    if SMALLEST < sizes.min(initial=1) and sizes.max(initial=1) < 1 / SMALLEST:
        return y, RMSNormSaved(kept, 1 / weight, r, weight)
    ones = np.ones_like(weight)
    x_hat = np.empty_like(kept)
    _rmsnorm(rows, ones, eps, x_hat, r)
    return y, RMSNormSaved(x_hat, ones, r, weight)


def rmsnorm_backward(saved, g):
    kept, back, r, weight = saved
    grad_x = np.empty(g.shape, g.dtype)
    grad_weight = np.empty((PARTS, len(weight)), g.dtype)
    _rmsnorm_backward(as_rows(g), kept, back, r, weight, as_rows(grad_x), grad_weight)
    return grad_x, grad_weight.sum(axis=0)


@kernel("(T[:, ::1], T[::1], T, T[:, ::1], T[::1])", LIGHT_PARALLEL_FROM)
def _rmsnorm(x, weight, eps, y, r):
    real = x.dtype.type
    d, zero, one = real(x.shape[1]), real(0), real(1)
    for part in prange(PARTS):
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            squares = zero
            for i in range(x.shape[1]):
                squares += x[n, i] * x[n, i]
            scale = one / np.sqrt(squares / d + eps)
            r[n] = scale
            for i in range(x.shape[1]):
                y[n, i] = x[n, i] * scale * weight[i]


@kernel("(T[:, ::1], T[:, ::1], T[::1], T[::1], T[::1], T[:, ::1], T[:, ::1])", LIGHT_PARALLEL_FROM)
def _rmsnorm_backward(g, kept, back, r, weight, grad_x, grad_weight):
    real = g.dtype.type
    d, zero = real(g.shape[1]), real(0)
    for part in prange(PARTS):
        of_part = grad_weight[part]
        of_part[:] = zero
        for n in range(share(part, len(g)), share(part + 1, len(g))):
            along = zero
            for i in range(g.shape[1]):
                along += g[n, i] * weight[i] * (kept[n, i] * back[i])
            along = along / d  # mean_i(h_i x_hat_i), to be taken out of h along x_hat
            for i in range(g.shape[1]):
                x_hat = kept[n, i] * back[i]
                grad_x[n, i] = r[n] * (g[n, i] * weight[i] - x_hat * along)
                of_part[i] += g[n, i] * x_hat
