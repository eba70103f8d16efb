"""Cross-entropy, fused: l = lse - z_t with lse = log sum_v exp(z_v) for each row of logits z.

Forward reads a row twice, the second time from the cache, and writes two numbers for it: no array as large as
the logits is made. Backward reads the logits once more and writes exp(z - lse), less 1 at the target, times
g. Rows that are ignored are not read at all. The vocabulary is wide, so nearly all the time goes into
`exp`.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import as_rows, contiguous
from tinygrad_ds.ops.loss import check_targets


class CrossEntropySaved(NamedTuple):
    """The logits, and of each row its lse, its target and whether it counts."""

    logits: np.ndarray  # (rows, V)
    lse: np.ndarray  # (rows,)
    targets: np.ndarray  # (rows,)
    counted: np.ndarray  # (rows,)
    shape: tuple[int, ...]
    reduction: str


def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    if not covered(logits):
        return NotImplemented
    counted = check_targets(logits.shape, targets, ignore_index, reduction)
    z, t, counts = as_rows(logits), flat(targets, np.int64), flat(counted, np.bool_)
    losses, lse = np.empty(targets.shape, z.dtype), np.empty(len(t), z.dtype)
    _cross_entropy(z, t, counts, losses.reshape(-1), lse)
    saved = CrossEntropySaved(z, lse, t, counts, logits.shape, reduction)
    if reduction == "none":
        return losses, saved
    return (losses.sum() if reduction == "sum" else losses.sum() / int(counts.sum())), saved


def cross_entropy_backward(saved, g):
    z, lse, t, counts, shape, reduction = saved
    g_n = g / int(counts.sum()) if reduction == "mean" else g
    g_n = flat(np.broadcast_to(g_n, shape[:-1]), z.dtype)
    grad = np.empty(shape, z.dtype)
    _cross_entropy_backward(z, g_n, lse, t, counts, as_rows(grad))
    return grad, None


def flat(array, dtype):
    return contiguous(np.asarray(array, dtype)).reshape(-1)


@kernel("(T[:, ::1], int64[::1], boolean[::1], T[::1], T[::1])")
def _cross_entropy(z, t, counts, losses, lse):
    zero = z.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(z)), share(part + 1, len(z))):
            losses[n], lse[n] = zero, zero
            if counts[n]:
                top = largest(z[n])
                total = zero
                for v in range(z.shape[1]):
                    total += exp(z[n, v] - top)
                lse[n] = np.log(total) + top
                losses[n] = lse[n] - z[n, t[n]]


@kernel("(T[:, ::1], T[::1], T[::1], int64[::1], boolean[::1], T[:, ::1])")
def _cross_entropy_backward(z, g, lse, t, counts, grad):
    zero = z.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(z)), share(part + 1, len(z))):
            if counts[n]:
                g_n, lse_n = g[n], lse[n]
                for v in range(z.shape[1]):
                    grad[n, v] = exp(z[n, v] - lse_n) * g_n
                grad[n, t[n]] -= g_n
            else:
                grad[n, :] = zero
