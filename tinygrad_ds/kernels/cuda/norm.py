"""RMSNorm on the device: launches of norm.cu. Saves the input and r alone; x_hat = x r is made again."""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import as_rows, blocks, contiguous, covered, launch, real_of

PARTS = 32  # of the rows, for the weight's gradient


class RMSNormSaved(NamedTuple):
    """The input, and one over the root mean square of each of its rows."""

    x: cupy.ndarray  # (rows, d)
    r: cupy.ndarray  # (rows,)
    weight: cupy.ndarray  # (d,)


def rmsnorm(x, weight, *, eps=1e-6):
    if not covered(x, weight, narrow=True) or weight.ndim != 1 or weight.shape != x.shape[-1:]:
        return NotImplemented
    rows, weight = as_rows(x), contiguous(weight)
    count, d = rows.shape
    y, r = cupy.empty_like(rows), cupy.empty(count, real_of(x))
    arrays = rows, weight, y, r
    launch("norm.forward", (blocks(count, 4),), (128,), *arrays, count, d, float(eps), dtype=x.dtype)
    return y.reshape(x.shape), RMSNormSaved(rows, r, weight)


def rmsnorm_backward(saved, g):
    x, r, weight = saved
    count, d = x.shape
    rows, grad_x, grad_weight = as_rows(g), cupy.empty_like(x), cupy.empty_like(weight)
    arrays: tuple = rows, x, r, weight, grad_x
    launch("norm.backward_input", (blocks(count, 4),), (128,), *arrays, count, d, dtype=x.dtype)
    parts = min(PARTS, blocks(count, 8))
    of_part = cupy.empty((parts, d), real_of(x))
    arrays = rows, x, r, of_part
    launch("norm.backward_weight", (blocks(d, 32), parts), (32, 8), *arrays, count, d, dtype=x.dtype)
    launch("norm.add_parts", (blocks(d, 128),), (128,), of_part, grad_weight, parts, d, dtype=x.dtype)
    return grad_x.reshape(g.shape), grad_weight
