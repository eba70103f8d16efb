"""Quantising on the device, a block for each tile: launches of quantize.cu.

Nothing is read by the host: a tile in which all is NaN gets the scale NaN, where the reference raises.
"""

import cupy

from tinygrad_ds.formats import find_format, seed_bits
from tinygrad_ds.kernels.cuda.common import contiguous, covered, launch
from tinygrad_ds.ops import quantize as reference
from tinygrad_ds.ops.broadcast import form
from tinygrad_ds.ops.quantize import LEAST_AMAX, Quantized, QuantizeSaved

MOST = 128 * 128  # entries of a tile, for a block walks through them alone


def quantize(x, *, format="e4m3", tile=(1, reference.SIDE), power_of_two=False, seed=None):
    if not covered(x):
        return NotImplemented
    rows = contiguous(reference.as_matrix(x))
    height, width = reference.tile_size(tile, rows.shape)
    if height * width > MOST:
        return NotImplemented
    narrow, kind = find_format(format), x.dtype
    down, across = reference.scales_shape(rows.shape, (height, width))
    values, scales = cupy.empty_like(rows), cupy.empty((down, across), kind)
    infinities = cupy.zeros((), cupy.int64)
    sizes = *rows.shape, height, width, narrow.mantissa_bits, narrow.least_exponent
    limits = float(narrow.largest), float(kind.type(LEAST_AMAX))
    how = int(power_of_two), int(seed is not None), 0 if seed is None else seed_bits(seed)
    arguments = rows, values, scales, infinities, *sizes, *limits, *how
    launch("quantize.quantize", (across, down), (128,), *arguments, dtype=kind)
    return Quantized(values.reshape(x.shape), scales, infinities), QuantizeSaved(scales, form(x), tile)


quantize_backward = reference.quantize.backward
