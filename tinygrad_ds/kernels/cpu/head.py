"""The output head with its loss, fused: logits are made, used and forgotten, a few hundred rows at a time.

Each chunk of rows goes through one buffer: x W^T by BLAS, then in one pass l = log sum_v exp(z_v) - z_t and,
in the place of z, dl/dz = softmax(z) - [v = t]; then BLAS again for dl/dx and dl/dW while the chunk is near.
So both gradients are ready when forward ends, for the sum of l; backward has only to scale them. They take
(rows + V) d numbers, where logits and their gradient would take 2 rows V. Rows that are ignored are left out.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds import settings
from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import as_rows, contiguous
from tinygrad_ds.kernels.cpu.loss import flat
from tinygrad_ds.ops.loss import check_targets

# Rows to a chunk. From here on BLAS is as fast as on all rows at once, and adding up dl/dW costs nearly
# nothing; with half as many the three products take some 5 % longer.
ROWS = 512


class LinearCrossEntropySaved(NamedTuple):
    """The gradients of the sum of the losses."""

    grad_x: np.ndarray  # (..., d)
    grad_weight: np.ndarray  # (V, d)
    divisor: int  # rows that count for the mean, 1 for the sum


def linear_cross_entropy(x, weight, targets, *, ignore_index=-100, reduction="mean"):
    fits = x.ndim > 0 and x.shape[-1] == weight.shape[-1] > 0 and reduction in ("mean", "sum")
    if not covered(x, weight) or not fits:
        return NotImplemented
    counted = check_targets((*x.shape[:-1], len(weight)), targets, ignore_index, reduction)
    rows, t = as_rows(x), flat(targets, np.int64)
    everything = counted.all()
    if not everything:
        counts = flat(counted, np.bool_)
        rows, t = rows[counts], t[counts]
    divisor = len(t) if reduction == "mean" else 1
    weight, losses = contiguous(weight), np.empty(len(t), x.dtype)
    if not settings.current().recording:
        for _ in _chunks(rows, weight, t, losses, False):
            pass
        return losses.sum() / divisor, None
    grad_rows, grad_weight = np.empty_like(rows), np.empty_like(weight)
    more = np.empty_like(weight) if len(t) > ROWS else grad_weight
    for chunk, grad_z in _chunks(rows, weight, t, losses, True):
        np.matmul(grad_z, weight, out=grad_rows[chunk])
        np.matmul(grad_z.T, rows[chunk], out=more if chunk.start else grad_weight)
        if chunk.start:
            grad_weight += more
    if everything:
        grad_x = grad_rows.reshape(x.shape)
    else:
        grad_x = np.zeros(x.shape, x.dtype)
        grad_x[counted] = grad_rows
    return losses.sum() / divisor, LinearCrossEntropySaved(grad_x, grad_weight, divisor)


def linear_cross_entropy_backward_input(saved, g):
    return saved.grad_x * (g / saved.divisor), None, None


def linear_cross_entropy_backward_weight(saved, g):
    return None, saved.grad_weight * (g / saved.divisor), None


def _chunks(rows, weight, t, losses, with_gradients):
    """Write the losses, chunk by chunk of rows; yields each chunk and dl/dz of it, until the next is due."""
    logits = np.empty((min(len(rows), ROWS), len(weight)), rows.dtype)
    for start in range(0, max(len(rows), 1), ROWS):  # no rows: one empty chunk, whose dl/dW is zeros
        chunk = slice(start, start + ROWS)
        z = logits[: len(rows[chunk])]
        np.matmul(rows[chunk], weight.T, out=z)
        _cross_entropy_in_place(z, t[chunk], losses[chunk], with_gradients)
        yield chunk, z


@kernel("(T[:, ::1], int64[::1], T[::1], boolean)")
def _cross_entropy_in_place(z, t, losses, with_gradients):
    """The losses of the rows; with gradients, z is overwritten with dl/dz."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for part in prange(PARTS):
        for n in range(share(part, len(z)), share(part + 1, len(z))):
            row, total = z[n], zero
            top = largest(row)
            below = top - row[t[n]]
            if with_gradients:
                for v in range(len(row)):
                    e = exp(row[v] - top)
                    row[v] = e
                    total += e
                scale = one / total
                for v in range(len(row)):
                    row[v] *= scale
                row[t[n]] -= one
            else:
                for v in range(len(row)):
                    total += exp(row[v] - top)
            losses[n] = np.log(total) + below
