"""The sums of a tensor core, fused: STRIP columns of the result at a time, 32 terms after another.

A term over the step of its instruction has at most 14 bits before the point. Cut off there, it is a whole
number, and the sum of 33 of those is exact.
"""

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import as_real
from tinygrad_ds.kernels.cpu.common import PARTS, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.rounding import magnitude, over, power_below
from tinygrad_ds.ops.accumulation import BITS, TERMS

STRIP = 64


def multiply(a, b, recipe):
    """a b with the sums of a recipe: BLAS, or those of a tensor core."""
    if recipe.accumulation == "float32":
        return np.matmul(a, b)
    y = np.empty((a.shape[0], b.shape[1]), a.dtype)
    _tensor_core(y, contiguous(a), contiguous(b), recipe.promote_every or 0)
    return y


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1], int64)")
def _tensor_core(y, a, b, every):
    real = y.dtype.type
    zero, one, least, step_of_one = real(0), real(1), real(2.0**-100), real(2.0**-BITS)
    strips = (y.shape[1] + STRIP - 1) // STRIP
    for part in prange(PARTS):
        kept, step, sums = np.empty(STRIP, y.dtype), np.empty(STRIP, y.dtype), np.empty(STRIP, y.dtype)
        for t in range(share(part, len(y) * strips), share(part + 1, len(y) * strips)):
            n, left = t // strips, t % strips * STRIP
            count = min(STRIP, y.shape[1] - left)
            total = y[n, left : left + count]
            for j in range(count):
                total[j] = kept[j] = zero
            for k in range(0, a.shape[1], TERMS):
                last = min(k + TERMS, a.shape[1])
                for j in range(count):
                    step[j] = kept[j]
                for i in range(k, last):
                    factor, row = a[n, i], b[i, left : left + count]
                    for j in range(count):
                        step[j] = as_real(max(magnitude(step[j]), magnitude(factor * row[j])))
                for j in range(count):
                    step[j] = power_below(as_real(max(magnitude(step[j]), magnitude(least)))) * step_of_one
                    sums[j] = np.trunc(over(kept[j], step[j]))
                    kept[j] = over(one, step[j])
                for i in range(k, last):
                    factor, row = a[n, i], b[i, left : left + count]
                    for j in range(count):
                        sums[j] += np.trunc(factor * row[j] * kept[j])
                moved = every > 0 and (k + TERMS) % every == 0
                for j in range(count):
                    own_step = power_below(as_real(max(magnitude(sums[j]), magnitude(one)))) * step_of_one
                    value = np.trunc(over(sums[j], own_step)) * own_step * step[j]
                    total[j] += value if moved else zero
                    kept[j] = zero if moved else value
            for j in range(count):
                total[j] += kept[j]
