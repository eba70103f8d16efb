"""RMSNorm, fused: y = x r w with r = (mean(x^2) + eps)^(-1/2) for each row.

Forward reads a row twice, the second time from the cache. Backward likewise: once for mean(h x_hat), once for
both gradients. The weight's gradient is a sum over rows: every part adds up its own, and the parts are
added in order. Saves r alone beside the input and recomputes x_hat = x r: half the memory of the reference.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import LIGHT_PARALLEL_FROM, PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import as_rows, contiguous


class RMSNormSaved(NamedTuple):
    """The input, and one over the root mean square of each of its rows."""

    x: np.ndarray  # (rows, d)
    r: np.ndarray  # (rows,)
    weight: np.ndarray  # (d,)


def rmsnorm(x, weight, *, eps=1e-6):
    if not covered(x, weight) or weight.ndim != 1 or weight.shape != x.shape[-1:]:
        return NotImplemented
    saved = RMSNormSaved(as_rows(x), np.empty(x.shape[:-1], x.dtype).reshape(-1), contiguous(weight))
    y = np.empty(x.shape, x.dtype)
    _rmsnorm(saved.x, saved.weight, eps, as_rows(y), saved.r)
    return y, saved


def rmsnorm_backward(saved, g):
    x, r, weight = saved
    grad_x = np.empty(g.shape, g.dtype)
    grad_weight = np.empty((PARTS, len(weight)), g.dtype)
    _rmsnorm_backward(as_rows(g), x, r, weight, as_rows(grad_x), grad_weight)
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


@kernel("(T[:, ::1], T[:, ::1], T[::1], T[::1], T[:, ::1], T[:, ::1])", LIGHT_PARALLEL_FROM)
def _rmsnorm_backward(g, x, r, weight, grad_x, grad_weight):
    real = x.dtype.type
    d, zero = real(x.shape[1]), real(0)
    for part in prange(PARTS):
        of_part = grad_weight[part]
        of_part[:] = zero
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            scale = r[n]
            along = zero
            for i in range(x.shape[1]):
                along += g[n, i] * weight[i] * x[n, i]
            along = along * scale / d  # mean_i(h_i x_hat_i), to be taken out of h along x_hat
            for i in range(x.shape[1]):
                x_hat = x[n, i] * scale
                grad_x[n, i] = scale * (g[n, i] * weight[i] - x_hat * along)
                of_part[i] += g[n, i] * x_hat
