"""Rounding to narrow formats, and their codes, in whole-number arithmetic on the bits of float32 and float64.

All functions are for use inside kernels and become vector instructions there: no branches, no calls.

A format comes as a vector of whole numbers, made by `layout_of` for the dtype of the kernel. Its numbers
around x lie 2^(e - m) apart, e the exponent of x or the format's least. A float of the kernel's dtype with
p bits of mantissa has just that distance to its neighbours where its exponent is e - m + p. So

    M = 1.5 2^(e - m + p),    (x + M) - M

is x, rounded to the nearest and ties to even by the processor itself.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

from tinygrad_ds.formats import Format
from tinygrad_ds.kernels.cpu.arithmetic import as_real, as_whole

# Places in the vector of a format.
LEAST, RAISE, DROP, OFFSET, TOP, NAN, SIGN, LARGEST = range(8)

_MANTISSA = {np.dtype(np.float32): 23, np.dtype(np.float64): 52}
_WHOLE: dict[np.dtype, Any] = {np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}


@cache
def layout_of(form: Format, dtype: np.dtype) -> np.ndarray:
    """A format as a kernel for `dtype` takes it: int64, at the places named above.

    LEAST: the bits of 2^e_min. RAISE: what makes M of the exponent of x. DROP: how many bits of mantissa are
    too many. OFFSET: what the exponents of both differ by, as code. TOP: the code of the largest number. NAN:
    that of NaN. SIGN: of minus zero. LARGEST: the bits of the largest number.
    """
    p, m, whole = _MANTISSA[dtype], form.mantissa_bits, _WHOLE[dtype]
    bias = (1 << (dtype.itemsize * 8 - 2 - p)) - 1
    largest = int(np.array(form.largest, dtype).view(whole))
    offset = (bias + form.least_exponent - 1) << m
    top = (largest >> (p - m)) - offset
    return np.array(
        [
            (bias + form.least_exponent) << p,
            (p - m) << p | 1 << (p - 1),
            p - m,
            offset,
            top,
            top + 1 + (1 << (m - 1) if form.has_infinity else 0),
            1 << (form.exponent_bits + m),
            largest,
        ],
        dtype=np.int64,
    )


@njit
def parts_of(layout):
    """The numbers of a layout as a tuple, which no loop need read again."""
    a = layout
    return a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]


def nearest(x, form):
    """x on the grid of the format, clipped to its largest number; NaN stays NaN."""
    raise NotImplementedError("for kernels only; elsewhere use formats.round_to")


def at_random(x, form, bits):
    """The same, one of the two neighbours of x by chance: `bits` is a random uint32."""
    raise NotImplementedError("for kernels only; elsewhere use formats.round_to")


def encoded(y, form):
    """The code of a number that is on the grid."""
    raise NotImplementedError("for kernels only; elsewhere use formats.encode")


def decoded(code, form, like):
    """The number of a code, of the dtype of `like`; 0 for the code of minus 0."""
    raise NotImplementedError("for kernels only; elsewhere use formats.decode")


def magnitude(x):
    """The bits of |x| as a whole number: in the order of the numbers, infinity and then NaN at the end."""
    raise NotImplementedError("for kernels only; elsewhere use abs")


def power_above(x):
    """The smallest power of two that is not below a positive x."""
    raise NotImplementedError("for kernels only; elsewhere use formats.power_of_two_above")


def power_below(x):
    """The largest power of two that is not above a positive x; infinity for NaN."""
    raise NotImplementedError("for kernels only; elsewhere use numpy.frexp")


def hashed(place, seed):
    """The random bits of one place: those of `formats.random_bits`; `seed` is what `seed_bits` gave."""
    raise NotImplementedError("for kernels only; elsewhere use formats.random_bits")


class _Parts:
    """The parts of a float as masks, for one dtype."""

    def __init__(self, dtype: np.dtype) -> None:
        whole = self.whole = _WHOLE[dtype]
        p = _MANTISSA[dtype]
        self.sign = whole(np.iinfo(whole).min)
        self.rest = whole(np.iinfo(whole).max)
        self.exponent = whole(self.rest >> p << p)
        self.inverse = whole(2 * (((1 << (dtype.itemsize * 8 - 2 - p)) - 1) << p))


def _for_dtype(make, kind):
    """What `make` makes for a type of numba's, or None where there is nothing for it."""
    return make(np.dtype(kind.name)) if kind in (types.float32, types.float64) else None


def _shift(instruction):
    """Numba would shift in 64 bits, half as many numbers at a time, as it knows of no bound for the shift."""

    @intrinsic
    def shifted(typing, x, places):
        return x(x, x), lambda context, builder, _, args: getattr(builder, instruction)(*args)

    return shifted


shifted_down, shifted_up = _shift("lshr"), _shift("shl")


@intrinsic
def over(typing, x, y):
    """x / y. Numba's own division looks for y = 0 each time, to raise an error."""
    return x(x, x), lambda context, builder, _, args: builder.fdiv(*args)


@cache
def _nearest_for(dtype):
    parts = _Parts(dtype)
    whole, sign, exponent = parts.whole, parts.sign, parts.exponent

    def nearest(x, form):
        largest = as_real(whole(form[LARGEST]))
        x = largest if x > largest else x
        x = -largest if x < -largest else x
        bits = as_whole(x)
        rounder = as_real(whole(max(whole(bits & exponent), whole(form[LEAST])) + whole(form[RAISE])))
        y = (x + rounder) - rounder
        return as_real(whole(as_whole(y) | (bits & sign)))

    return nearest


@cache
def _at_random_for(dtype):
    parts, real = _Parts(dtype), dtype.type
    whole, sign, rest, exponent = parts.whole, parts.sign, parts.rest, parts.exponent
    inverse, fraction, p = parts.inverse, real(2.0**-24), whole(_MANTISSA[dtype])

    def at_random(x, form, bits):
        largest = as_real(whole(form[LARGEST]))
        x = largest if x > largest else x
        x = -largest if x < -largest else x
        of_x = as_whole(x)
        size = as_real(whole(of_x & rest))
        field = max(whole(of_x & exponent), whole(form[LEAST]))
        step = whole(field - whole((p - whole(form[DROP])) << p))
        steps = size * as_real(whole(inverse - step))
        below = real(whole(steps))
        chance = real(np.int32(bits >> np.uint32(8))) * fraction
        y = (below + real(chance < steps - below)) * as_real(step)
        y = y if size == size else size
        return as_real(whole(as_whole(y) | (of_x & sign)))

    return at_random


@cache
def _encoded_for(dtype):
    parts = _Parts(dtype)
    whole, rest = parts.whole, parts.rest

    def encoded(y, form):
        bits = whole(as_whole(y) & rest)
        least, drop = whole(form[LEAST]), whole(form[DROP])
        code = whole(shifted_down(bits, drop) - whole(form[OFFSET]))
        # Added to 2^e_min, a smaller number leaves how many steps it is in the mantissa.
        steps = shifted_down(whole(as_whole(as_real(bits) + as_real(least)) - least), drop)
        code = steps if bits < least else code
        code = whole(form[NAN]) if bits > whole(form[LARGEST]) else code
        return whole(code | (whole(form[SIGN]) if as_whole(y) < whole(0) else whole(0)))

    return encoded


@cache
def _decoded_for(dtype):
    parts = _Parts(dtype)
    whole, minus = parts.whole, parts.sign
    nan = whole(np.array(np.nan, dtype).view(whole))

    def decoded(code, form, like):
        sign = whole(form[SIGN])
        negative = whole(code) >= sign
        code = whole(whole(code) & whole(sign - whole(1)))
        least, drop = whole(form[LEAST]), whole(form[DROP])
        bits = shifted_up(whole(code + whole(form[OFFSET])), drop)
        small = as_real(whole(least + shifted_up(code, drop))) - as_real(least)
        bits = as_whole(small) if bits < least else bits
        bits = nan if code > whole(form[TOP]) else bits
        return as_real(whole(bits | (minus if negative else whole(0))))

    return decoded


@cache
def _magnitude_for(dtype):
    parts = _Parts(dtype)
    whole, rest = parts.whole, parts.rest
    return lambda x: whole(as_whole(x) & rest)


@cache
def _power_above_for(dtype):
    parts = _Parts(dtype)
    whole, exponent = parts.whole, parts.exponent
    below_one = whole((1 << _MANTISSA[dtype]) - 1)
    return lambda x: as_real(whole(whole(as_whole(x) + below_one) & exponent))


@cache
def _power_below_for(dtype):
    parts = _Parts(dtype)
    whole, exponent = parts.whole, parts.exponent
    return lambda x: as_real(whole(as_whole(x) & exponent))


# Without "reassoc": (x + rounder) - rounder is not x.
_EXACT: dict[str, set] = {"fastmath": set()}


@overload(nearest, jit_options=_EXACT)
def _nearest(x, form):
    return _for_dtype(_nearest_for, x)


@overload(at_random, jit_options=_EXACT)
def _at_random(x, form, bits):
    return _for_dtype(_at_random_for, x)


@overload(encoded, jit_options=_EXACT)
def _encoded(y, form):
    return _for_dtype(_encoded_for, y)


@overload(decoded, jit_options=_EXACT)
def _decoded(code, form, like):
    return _for_dtype(_decoded_for, like)


@overload(magnitude, jit_options=_EXACT)
def _magnitude(x):
    return _for_dtype(_magnitude_for, x)


@overload(power_above, jit_options=_EXACT)
def _power_above(x):
    return _for_dtype(_power_above_for, x)


@overload(power_below, jit_options=_EXACT)
def _power_below(x):
    return _for_dtype(_power_below_for, x)


@overload(hashed, jit_options=_EXACT)
def _hashed(place, seed):
    first, second = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
    half, fifteen = np.uint32(16), np.uint32(15)

    def hashed(place, seed):
        x = np.uint32(np.uint32(place) + seed)
        x = np.uint32(np.uint32(x ^ (x >> half)) * first)
        x = np.uint32(np.uint32(x ^ (x >> fifteen)) * second)
        return np.uint32(x ^ (x >> half))

    return hashed
