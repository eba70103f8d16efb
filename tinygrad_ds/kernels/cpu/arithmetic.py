"""The exponential and the largest entry of a row, in forms that the compiler turns into vector instructions.

A loop that calls the C library's `exp`, or takes a maximum of floats, goes one entry at a time: the first
because of the call, the second because of what NaN must do. Whole-number arithmetic on the bits of a float
has neither problem. Both functions are for use inside kernels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

_WHOLE = {types.float32: types.int32, types.float64: types.int64}


def _bits_read_as(results: dict) -> Any:
    """An intrinsic that reads the bits of one type as those of another."""

    @intrinsic
    def read(context, x):
        result = results[x]
        return result(x), lambda target, builder, _, args: builder.bitcast(
            args[0], target.get_value_type(result)
        )

    return read


as_whole = _bits_read_as(_WHOLE)
as_real = _bits_read_as({whole: real for real, whole in _WHOLE.items()})


def exp(x):
    """e^x to 1 ulp, for x up to 80: softmax and its kin take the largest entry out of the exponent first.

        x = k ln 2 + r with k whole and |r| <= ln 2 / 2,    e^x = 2^k e^r,    e^r by its Taylor series.

    Far below (e^-86 in float32, e^-707 in float64) the result is 0. NaN stays NaN.
    """
    raise NotImplementedError("for kernels only; elsewhere use numpy.exp")


def largest(row):
    """The largest entry of a vector. A NaN is passed over, and is not lost: the exponentials of its row are
    NaN.

    The bits of floats, read as whole numbers, are in the order of the floats; for negative ones, once all
    bits but the sign are flipped.
    """
    raise NotImplementedError("for kernels only; elsewhere use numpy.max")


def _exp_for(real: Any, whole: Any, mantissa: int, degree: int, ln2_head: float, ln2_tail: float) -> Callable:
    """`exp` for one dtype with `mantissa` bits after the point."""
    series = tuple(real(1 / np.prod(np.arange(1.0, n + 1))) for n in range(degree, -1, -1))
    first, others = series[0], series[1:]
    log2_e = real(1 / np.log(2))
    rounder = real(1.5 * 2**mantissa)  # adding it rounds to whole numbers, and leaves k in the lowest bits
    head, tail = real(ln2_head), real(ln2_tail)  # ln 2 in two pieces: k times the first is exact
    lowest = real(-86 if real is np.float32 else -707)
    zero, shift = real(0), whole(mantissa)

    def exp(x):
        shifted = x * log2_e + rounder
        k = shifted - rounder
        r = (x - k * head) - k * tail
        e = first
        for coefficient in others:
            e = e * r + coefficient
        e = as_real(whole(as_whole(e) + (as_whole(shifted) << shift)))  # k goes into the exponent
        return zero if x < lowest else e

    return exp


def _largest_for(whole: Any) -> Callable:
    """`largest` for floats with the bits of `whole`."""
    smallest, sign, others = np.iinfo(whole).min, np.iinfo(whole).bits - 1, np.iinfo(whole).max

    def largest(row):
        top = whole(smallest)
        for i in range(row.shape[0]):
            bits = as_whole(row[i])
            top = max(top, whole(bits ^ ((bits >> sign) & others)))
        return as_real(whole(top ^ ((top >> sign) & others)))

    return largest


_EXP = {
    types.float32: _exp_for(np.float32, np.int32, 23, 7, 0.693359375, -2.12194440054690583e-4),
    types.float64: _exp_for(np.float64, np.int64, 52, 13, 0.693145751953125, 1.42860682030941723e-6),
}
_LARGEST = {types.float32: _largest_for(np.int32), types.float64: _largest_for(np.int64)}


# Without "reassoc": (x + rounder) - rounder is not x.
@overload(exp, jit_options={"fastmath": {"contract"}})
def _exp(x):
    return _EXP.get(x)


@overload(largest)
def _largest(row):
    return _LARGEST.get(row.dtype)
