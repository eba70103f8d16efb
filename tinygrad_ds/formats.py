"""Narrow number formats, simulated: rounding to their grids, their codes, and random bits to round with.

A format with m bits of mantissa and a least exponent e_min can write, of either sign,

    n 2^(e - m),    e >= e_min,  2^m <= n < 2^(m + 1),       and, below 2^e_min,  n 2^(e_min - m),  n < 2^m:

between two powers of two its numbers lie on an even grid, whose step doubles from one to the next. Here
those numbers stand in arrays of float32 or float64, where each of them is exact, so that one can look at
them and calculate with them; `encode` makes the bits of them that would be stored.
"""

from typing import NamedTuple

import numpy as np

from tinygrad_ds.device import Array, namespace


class Format(NamedTuple):
    """One sign bit, `exponent_bits` and `mantissa_bits`."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    largest: float
    has_infinity: bool  # the code behind the largest number is infinity, else NaN

    @property
    def least_exponent(self) -> int:
        """e_min: 2^e_min is the smallest number with a full mantissa."""
        return 2 - (1 << (self.exponent_bits - 1))

    @property
    def code(self) -> np.dtype:
        """The integers that hold its codes."""
        return np.dtype(np.uint8 if self.exponent_bits + self.mantissa_bits < 8 else np.uint16)


FORMATS = {
    each.name: each
    for each in (
        Format("e4m3", 4, 3, 448.0, False),  # float8_e4m3fn
        Format("e5m2", 5, 2, 57344.0, True),
        Format("e5m6", 5, 6, 65024.0, True),  # 12 bits, in the low ones of a uint16
    )
}


def find_format(name: str) -> Format:
    """The format called `name`. Raises ValueError for a name that is none."""
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}, but there are {', '.join(FORMATS)}")
    return FORMATS[name]


def round_to(x: Array, name: str, *, saturate: bool = True, bits: Array | None = None) -> Array:
    """The numbers of format `name` nearest to x, float32 or float64; the even one if two are as near.

    bits: random uint32 of x's shape. Then x becomes the upper of its two neighbours with a chance that is
    its distance from the lower one in steps of the grid (to 24 bits), so that the mean over many is x.
    saturate: numbers beyond the largest, infinities among them, become the largest; otherwise what rounds
    beyond it becomes infinity, or NaN in a format without infinity. NaN stays NaN.
    """
    xp, form = namespace(x), find_format(name)
    if saturate:
        x = xp.clip(x, -form.largest, form.largest)
    step = _grid_step(x, form)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are what they are
        size = abs(x / step)
        if bits is None:
            size = xp.rint(size)
        else:
            below = xp.floor(size)
            size = below + ((bits >> 8).astype(x.dtype) * x.dtype.type(2.0**-24) < size - below)
        y = xp.copysign(size * step, x)
    if not saturate:
        y = xp.where(abs(y) > form.largest, xp.copysign(np.inf if form.has_infinity else np.nan, x), y)
    return y.astype(x.dtype, copy=False)


def _grid_step(x: Array, form: Format) -> Array:
    """2^(e - m) for every entry: the distance of the format's numbers around it."""
    xp = namespace(x)
    exponent = xp.frexp(xp.where(xp.isfinite(x), x, 1))[1] - 1  # 2^exponent <= |x| < 2^(exponent + 1)
    exponent = xp.maximum(exponent, form.least_exponent) - form.mantissa_bits
    return xp.ldexp(xp.ones_like(x), exponent)


def encode(values: Array, name: str) -> Array:
    """The codes of numbers on the grid, uint8 or (e5m6) uint16: sign, exponent and mantissa in order."""
    xp, form = namespace(values), find_format(name)
    m, top = form.mantissa_bits, 1 << (form.exponent_bits + form.mantissa_bits)
    known = xp.where(xp.isfinite(values), abs(values), 0)
    exponent = xp.where(known < 2.0**form.least_exponent, form.least_exponent, xp.frexp(known)[1] - 1)
    n = xp.ldexp(known, m - exponent).astype(np.int64)  # below 2^m for the numbers below 2^e_min
    codes = n + ((exponent - form.least_exponent) << m)
    infinity = ((1 << form.exponent_bits) - 1) << m
    codes = xp.where(xp.isinf(values), infinity if form.has_infinity else top - 1, codes)
    codes = xp.where(xp.isnan(values), infinity | 1 << (m - 1) if form.has_infinity else top - 1, codes)
    return (codes + top * xp.signbit(values)).astype(form.code)


def decode(codes: Array, name: str, dtype: str = "float32") -> Array:
    """The numbers that codes stand for, as an array of `dtype`."""
    form = find_format(name)
    xp = namespace(codes)
    return xp.asarray(_numbers(form), dtype=dtype)[codes]


def _numbers(form: Format) -> np.ndarray:
    """What every code stands for."""
    m, top = form.mantissa_bits, 1 << (form.exponent_bits + form.mantissa_bits)
    codes = np.arange(top)
    exponent, mantissa = codes >> m, codes & ((1 << m) - 1)
    n = mantissa + np.where(exponent > 0, 1 << m, 0)
    values = np.ldexp(n.astype(float), np.maximum(exponent, 1) - 1 + form.least_exponent - m)
    if form.has_infinity:
        values[exponent == (1 << form.exponent_bits) - 1] = np.nan
        values[((1 << form.exponent_bits) - 1) << m] = np.inf
    else:
        values[-1] = np.nan
    return np.concatenate([values, -values])


def power_of_two_above(scales: Array) -> Array:
    """The smallest powers of two that are not below positive `scales`: those that ue8m0 can write."""
    xp = namespace(scales)
    mantissa, exponent = xp.frexp(scales)  # mantissa 0.5 for a power of two, above it for the rest
    return xp.ldexp(xp.ones_like(scales), exponent - (mantissa == 0.5))


def encode_power(scales: Array) -> Array:
    """Codes of powers of two in ue8m0, uint8: the exponent plus 127."""
    return (namespace(scales).frexp(scales)[1] + 126).astype(np.uint8)


def decode_power(codes: Array, dtype: str = "float32") -> Array:
    """The powers of two for codes of ue8m0; 255 is NaN."""
    xp = namespace(codes)
    powers = xp.ldexp(xp.ones(codes.shape, dtype=dtype), codes.astype(np.int32) - 127)
    return xp.where(codes == 255, xp.asarray(np.nan, dtype=dtype), powers)


def random_bits(shape: tuple[int, ...], seed: int, like: Array) -> Array:
    """uint32 for every place of an array of this shape, where `like` lives: a hash of place and seed.

    No state is kept: the same seed gives the same bits everywhere, in any order. The hash is Chris
    Wellons' lowbias32, a permutation of the 2^32 numbers in which each bit of the input moves half of the
    output's.
    """
    xp = namespace(like)
    place = xp.arange(int(np.prod(shape)), dtype=np.uint32)
    return _hash(place + np.uint32(seed_bits(seed))).reshape(shape)


def seed_bits(seed: int) -> int:
    """Where the random bits of a seed begin."""
    return int(_hash(np.array([seed & 0xFFFFFFFF], dtype=np.uint32))[0])


def _hash(x: Array) -> Array:
    """lowbias32 of every entry."""
    x = (x ^ x >> 16) * np.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * np.uint32(0x846CA68B)
    return x ^ x >> 16
