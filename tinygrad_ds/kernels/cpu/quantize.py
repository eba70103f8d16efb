"""Quantising, fused: a tile is read twice, the second time from the cache: its largest entry, its numbers.

What is written is the values on the grid (`quantize`) or, for the products of fp8.py, the values scaled back,
and their codes beside them if they are to be kept. A kernel takes columns of tiles side by side, so that
rows are read in one piece even where a tile is one column. Where a number is not finite, the reference runs.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.formats import decode, encode, find_format, power_of_two_above, seed_bits
from tinygrad_ds.kernels.cpu.arithmetic import as_real
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.rounding import (
    at_random,
    decoded,
    encoded,
    hashed,
    layout_of,
    magnitude,
    nearest,
    over,
    parts_of,
    power_above,
)
from tinygrad_ds.ops import quantize as reference
from tinygrad_ds.ops.broadcast import form
from tinygrad_ds.ops.quantize import LEAST_AMAX, Quantized, QuantizeSaved

STRIP = 128  # columns, where a tile has but one
NO_CODES = np.empty((0, 0), np.uint8)

# Places in the vector of what a kernel is asked to do.
ROWS, COLUMNS, POWER_OF_TWO, RANDOM, SEED, GIVEN, BACK, KEEP = range(8)


class Tiled(NamedTuple):
    """What `in_tiles` made of a matrix."""

    y: np.ndarray  # (N, d)
    scales: np.ndarray  # (tiles down, tiles across)
    codes: np.ndarray  # (N, d) or NO_CODES


def quantize(x, *, format="e4m3", tile=(1, reference.SIDE), power_of_two=False, seed=None):
    if not covered(x):
        return NotImplemented
    made = _tiled(contiguous(reference.as_matrix(x)), format, tile, power_of_two, seed, False, False)
    if made is None:
        return NotImplemented
    none = np.zeros((), np.int64)
    return Quantized(made.y.reshape(x.shape), made.scales, none), QuantizeSaved(made.scales, form(x), tile)


quantize_backward = reference.quantize.backward


def in_tiles(rows, format, tile, power_of_two, seed, *, back=False, keep=False):
    """A contiguous matrix quantised. back: with its numbers scaled back; keep: with codes beside them."""
    made = _tiled(rows, format, tile, power_of_two, seed, back, keep)
    if made is not None:
        return made
    given, _ = reference.quantize.forward(
        rows, format=format, tile=tile, power_of_two=power_of_two, seed=seed
    )
    y = reference.dequantize.forward(given.values, given.scales, tile=tile)[0] if back else given.values
    return Tiled(y, given.scales, encode(given.values, format) if keep else NO_CODES)


def from_tiles(cached, format, tile):
    """The matrix (N, d) of codes and scales, scaled back."""
    codes, scales = cached
    if codes.dtype != np.uint8:
        return reference.dequantize.forward(decode(codes, format, scales.dtype), scales, tile=tile)[0]
    y, size = np.empty(codes.shape, scales.dtype), reference.tile_size(tile, codes.shape)
    _decode(y, layout_of(find_format(format), y.dtype), codes, scales, *size)
    return y


def _tiled(rows, format, tile, power_of_two, seed, back, keep):
    """The same by the kernel, or None if a number is not finite."""
    narrow, real = find_format(format), rows.dtype.type
    size = reference.tile_size(tile, rows.shape)
    scales = np.empty(reference.scales_shape(rows.shape, size), rows.dtype)
    how = np.zeros(8, np.int64)
    how[[ROWS, COLUMNS, POWER_OF_TWO]] = *size, power_of_two
    if seed is not None:
        how[[RANDOM, SEED]] = 1, seed_bits(seed)
    wide = keep and narrow.code != np.uint8  # such codes are made from the values, afterwards
    how[[BACK, KEEP]] = back and not wide, keep and not wide
    y, odd = np.empty_like(rows), np.zeros(PARTS, np.int64)
    codes = np.empty(rows.shape, np.uint8) if how[KEEP] else NO_CODES
    of_tiles = scales
    if scales.size == 1 and len(rows) > 1:  # one tile, of which the threads take rows
        top = max(rows.max(), -rows.min())
        if not np.isfinite(top):
            return None
        scales[...] = max(top, real(LEAST_AMAX)) / real(narrow.largest)
        if power_of_two:
            scales = power_of_two_above(scales)
        how[[ROWS, COLUMNS, GIVEN]] = 1, rows.shape[1], 1
        of_tiles = np.full((len(rows), 1), scales[0, 0])
    layout = layout_of(narrow, rows.dtype)
    task = layout, how, real(narrow.largest), real(LEAST_AMAX), of_tiles, y
    if size[1] == 1 and not how[KEEP] and not how[GIVEN]:
        _quantise_columns(rows, *task, odd)
    else:
        _quantise(rows, *task, codes, odd)
    if odd.any():
        return None
    if wide:
        codes = encode(y, format)
        y = y * reference.expand(scales, y.shape, size) if back else y
    return Tiled(y, scales, codes)


@kernel("(T[:, ::1], int64[::1], int64[::1], T, T, T[:, ::1], T[:, ::1], uint8[:, ::1], int64[::1])")
def _quantise(x, layout, how, largest, least, scales, y, codes, odd):
    """Any tiles. odd[part] is set where an entry is not finite; what is written is of no use then."""
    across, height, width, seed = scales.shape[1], how[ROWS], how[COLUMNS], np.uint32(how[SEED])
    format, zero, one = parts_of(layout), x.dtype.type(0), x.dtype.type(1)
    infinity = magnitude(over(one, zero))
    for part in prange(PARTS):
        for t in range(share(part, scales.size), share(part + 1, scales.size)):
            a, left = t // across, t % across * width
            count = min(width, x.shape[1] - left)
            first, last = a * height, min((a + 1) * height, x.shape[0])
            if not how[GIVEN]:
                top = magnitude(zero)
                for r in range(first, last):
                    row = x[r, left : left + count]
                    for i in range(count):
                        top = max(top, magnitude(row[i]))
                odd[part] |= top >= infinity
                scale = max(as_real(top), least) / largest
                scales[a, t % across] = power_above(scale) if how[POWER_OF_TWO] else scale
            scale = scales[a, t % across]
            after = scale if how[BACK] and not how[KEEP] else one
            for r in range(first, last):
                row, to = x[r, left : left + count], y[r, left : left + count]
                if how[RANDOM]:
                    place = r * x.shape[1] + left
                    for i in range(count):
                        to[i] = at_random(over(row[i], scale), format, hashed(place + i, seed)) * after
                else:
                    for i in range(count):
                        to[i] = nearest(over(row[i], scale), format) * after
                if how[KEEP]:
                    kept, after_that = codes[r, left : left + count], scale if how[BACK] else one
                    for i in range(count):
                        kept[i] = encoded(to[i], format)
                        to[i] *= after_that


@kernel("(T[:, ::1], int64[::1], int64[::1], T, T, T[:, ::1], T[:, ::1], int64[::1])")
def _quantise_columns(x, layout, how, largest, least, scales, y, odd):
    """Tiles of one column, those of STRIP columns at a time, so that rows are read in one piece."""
    height, seed, format = how[ROWS], np.uint32(how[SEED]), parts_of(layout)
    across = (x.shape[1] + STRIP - 1) // STRIP
    zero, one = x.dtype.type(0), x.dtype.type(1)
    infinity = magnitude(over(one, zero))
    for part in prange(PARTS):
        for t in range(share(part, len(scales) * across), share(part + 1, len(scales) * across)):
            a, left = t // across, t % across * STRIP
            count = min(STRIP, x.shape[1] - left)
            first, last = a * height, min((a + 1) * height, x.shape[0])
            scale = scales[a, left : left + count]
            for i in range(count):
                scale[i] = zero
            for r in range(first, last):
                row = x[r, left : left + count]
                for i in range(count):
                    scale[i] = as_real(max(magnitude(scale[i]), magnitude(row[i])))
            for i in range(count):
                odd[part] |= magnitude(scale[i]) >= infinity
                scale[i] = max(scale[i], least) / largest
                scale[i] = power_above(scale[i]) if how[POWER_OF_TWO] else scale[i]
            for r in range(first, last):
                row, to = x[r, left : left + count], y[r, left : left + count]
                if how[RANDOM]:
                    place = r * x.shape[1] + left
                    for i in range(count):
                        after = scale[i] if how[BACK] else one
                        to[i] = at_random(over(row[i], scale[i]), format, hashed(place + i, seed)) * after
                else:
                    for i in range(count):
                        to[i] = nearest(over(row[i], scale[i]), format) * (scale[i] if how[BACK] else one)


@kernel("(T[:, ::1], int64[::1], uint8[:, ::1], T[:, ::1], int64, int64)")
def _decode(y, layout, codes, scales, height, width):
    format, across = parts_of(layout), scales.shape[1]
    for part in prange(PARTS):
        for r in range(share(part, len(y)), share(part + 1, len(y))):
            for t in range(across):
                left, right = t * width, min((t + 1) * width, y.shape[1])
                to, row, scale = y[r, left:right], codes[r, left:right], scales[r // height, t]
                for i in range(len(row)):
                    to[i] = decoded(row[i], format, scale) * scale
