"""Quantising on the device, a block for each tile: launches of quantize.cu.

Nothing is read by the host: a tile in which all is NaN gets the scale NaN, where the reference raises.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds.formats import find_format, seed_bits
from tinygrad_ds.kernels.cuda.common import contiguous, covered, launch
from tinygrad_ds.ops import quantize as reference
from tinygrad_ds.ops.broadcast import form
from tinygrad_ds.ops.quantize import LEAST_AMAX, Quantized, QuantizeSaved

MOST = 128 * 128  # entries of a tile, for a block walks through them alone


class Tiled(NamedTuple):
    """What `in_tiles` made of a matrix."""

    values: cupy.ndarray  # (N, d)
    scales: cupy.ndarray  # (tiles down, tiles across)


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


def in_tiles(rows, format, tile, power_of_two, seed, *, back=False, infinities=None):
    """A contiguous matrix quantised.

    back: its numbers scaled back. infinities: () int64, to which their number is added.
    """
    height, width = reference.tile_size(tile, rows.shape)
    narrow, kind = find_format(format), rows.dtype
    down, across = reference.scales_shape(rows.shape, (height, width))
    values, scales = cupy.empty_like(rows), cupy.empty((down, across), kind)
    sizes = *rows.shape, height, width, narrow.mantissa_bits, narrow.least_exponent
    limits = float(narrow.largest), float(kind.type(LEAST_AMAX))
    how = int(power_of_two), int(seed is not None), 0 if seed is None else seed_bits(seed), int(back)
    arguments = rows, values, scales, infinities, *sizes, *limits, *how
    launch("quantize.quantize", (across, down), (128,), *arguments, dtype=kind)
    return Tiled(values, scales)
