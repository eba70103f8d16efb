"""Quantising on the device, a block for each tile: launches of quantize.cu.

Nothing is read by the host: a tile in which all is NaN gets the scale NaN, where the reference raises.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds.formats import find_format
from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, launch
from tinygrad_ds.ops import quantize as reference
from tinygrad_ds.ops.broadcast import form
from tinygrad_ds.ops.quantize import LEAST_AMAX, Quantized, QuantizeSaved

MOST = 128 * 128  # entries of a tile, for a block walks through them alone


class Tiled(NamedTuple):
    """What `in_tiles` made of a matrix."""

    values: cupy.ndarray  # (N, d)
    scales: cupy.ndarray  # (tiles down, tiles across)
    codes: cupy.ndarray | None  # (N, d)


def quantize(x, *, format="e4m3", tile=(1, reference.SIDE), power_of_two=False, seed=None):
    if not covered(x):
        return NotImplemented
    rows = contiguous(reference.as_matrix(x))
    if not fits(tile, rows.shape):
        return NotImplemented
    infinities = cupy.zeros((), cupy.int64)
    made = in_tiles(rows, format, tile, power_of_two, seed, infinities=infinities)
    if (total := reference.counter(cupy)) is not None:
        total += infinities
    values = made.values.reshape(x.shape)
    return Quantized(values, made.scales, infinities), QuantizeSaved(made.scales, form(x), tile)


quantize_backward = reference.quantize.backward


def fits(tile, shape):
    """Whether a block can take such a tile of a matrix of this shape."""
    height, width = reference.tile_size(tile, shape)
    return height * width <= MOST


def in_tiles(rows, format, tile, power_of_two, seed, *, back=False, keep=False, infinities=None):
    """A contiguous matrix quantised, or each of a stack of them with a seed of its own.

    back: its numbers scaled back; keep: with codes beside them. infinities: () int64, to which their number
    is added.
    """
    shape, count = rows.shape[-2:], len(rows) if rows.ndim == 3 else 1
    size = reference.tile_size(tile, shape)
    down, across = reference.scales_shape(shape, size)
    values, scales = cupy.empty_like(rows), cupy.empty((*rows.shape[:-2], down, across), rows.dtype)
    codes = cupy.empty(rows.shape, find_format(format).code) if keep else None
    arguments = rows, values, scales, infinities, *shape, *size
    rules = *_rules(rows, format, power_of_two, seed), int(back), codes, *_of_codes(format)
    launch("quantize.quantize", (across * down, 1, count), (128,), *arguments, *rules, dtype=rows.dtype)
    return Tiled(values, scales, codes)


def restored(codes, scales, format, width):
    """The matrix (N, d) of codes and of scales for tiles of 1 x width, scaled back."""
    y, narrow = cupy.empty(codes.shape, scales.dtype), find_format(format)
    grid = (blocks(y.size, 256),)
    rules = *_of_codes(format), narrow.mantissa_bits, narrow.least_exponent
    launch("quantize.restore", grid, (256,), codes, scales, y, *y.shape, width, *rules, dtype=y.dtype)
    return y


def _of_codes(format):
    """Whether codes have two bytes, the bit of the sign, and the first code that is NaN."""
    narrow = find_format(format)
    top = 1 << (narrow.exponent_bits + narrow.mantissa_bits)
    infinity = ((1 << narrow.exponent_bits) - 1) << narrow.mantissa_bits
    nan = infinity | 1 << (narrow.mantissa_bits - 1) if narrow.has_infinity else top - 1
    return int(narrow.code != cupy.uint8), top, nan


def down_experts(rows, offsets, format, side, power_of_two, seed, infinities):
    """The rows of experts (M, d) in tiles of side x 1 that begin anew with each expert, scaled back."""
    values, experts = cupy.empty_like(rows), len(offsets) - 1
    grid = blocks(rows.shape[1], 128), blocks(len(rows), side) + experts
    arguments = rows, values, infinities, offsets, *rows.shape, experts, side
    rules = _rules(rows, format, power_of_two, seed)
    launch("quantize.down_experts", grid, (128,), *arguments, *rules, dtype=rows.dtype)
    return values


def _rules(rows, format, power_of_two, seed):
    """What both kernels are told of rounding."""
    narrow = find_format(format)
    limits = float(narrow.largest), float(rows.dtype.type(LEAST_AMAX))
    how = int(power_of_two), int(seed is not None), (seed or 0) & 0xFFFFFFFF
    return narrow.mantissa_bits, narrow.least_exponent, *limits, *how
