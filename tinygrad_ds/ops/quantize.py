"""Quantising with a scale for every tile, as DeepSeek-V3 does it (section 3.3.2), and back again.

    values, scales, _ = quantize(x, tile=(1, 128))        x is about values * scale of the tile
    y = dequantize(values, scales, tile=(1, 128))

A format with three bits of mantissa reaches from 2^-9 to 448, which the numbers of a whole tensor do not
fit into. So each tile is divided by a scale of its own, found from the tile itself ("online"): its largest
number becomes the largest of the format. Activations have tiles of 1 x 128, weights of 128 x 128. The
`values` are numbers on the format's grid in an array of x's dtype; `formats.encode` makes their bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds.device import Array, device_of, namespace
from tinygrad_ds.formats import find_format, power_of_two_above, random_bits, round_to
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.primitive import primitive

SIDE = 128  # of DeepSeek's tiles
LEAST_AMAX = 1e-4  # a tile of smaller numbers is scaled as if this were its largest

Tile = tuple[int, int] | None


class Quantized(NamedTuple):
    """values * scale of the tile is about x."""

    values: Array  # as x, on the grid of the format
    scales: Array  # (tiles down, tiles across)
    infinities: Array  # () int64: how many infinities became the largest number


class QuantizeSaved(NamedTuple):
    """What backward reads."""

    scales: Array  # (tiles down, tiles across)
    x: Form
    tile: Tile


@dataclass
class Infinities:
    """How many infinities became the largest number of a format, each as often as it was quantised.

    On a GPU `count` is an array () there, which nobody reads while counting goes on.
    """

    count: Any = 0

    def add(self, found: Array) -> None:
        """Count so many more."""
        self.count = self.count + (found if device_of(found) == "cuda" else int(found))

    def taken(self) -> Any:
        """What was counted; it begins again from 0."""
        counted, self.count = self.count, 0
        return counted


_counting: ContextVar[Infinities | None] = ContextVar("counting", default=None)


@contextmanager
def count_infinities(into: Infinities) -> Iterator[None]:
    """Add to `into` what quantising meets in a `with` block, by itself or for a product in FP8."""
    before = _counting.set(into)
    try:
        yield
    finally:
        _counting.reset(before)


def counter(module: ModuleType) -> Array | None:
    """Where kernels for a GPU may add what they meet, () int64, None where nobody counts."""
    counting = _counting.get()
    if counting is None:
        return None
    if device_of(counting.count) == "cpu":
        counting.count = module.full((), counting.count, dtype=np.int64)
    return counting.count


@primitive
def quantize(x, *, format="e4m3", tile=(1, SIDE), power_of_two=False, seed=None):
    """values = round(x / s), one scale s = max(amax, 1e-4) / largest for each tile, amax its largest |x|.

    x (..., d), taken as a matrix of rows (N, d) -> Quantized(values (..., d), scales, infinities).
    tile: rows and columns of a tile, smaller ones at the lower and right edge; None: all of x is one tile.
    format: "e4m3" (largest 448), "e5m2" (57344) or "e5m6" (65024). power_of_two: scales are rounded up to
    powers of two, as ue8m0 has them. seed: None rounds to the nearest number, ties to even; an integer
    rounds at random, up or down with the chances that make the mean x, from that seed.
    NaN stays NaN, and amax is that of the finite numbers: an infinity becomes the largest number, counted.
    Raises FloatingPointError for a tile in which all is NaN.
    """
    rows = as_matrix(x if x.dtype in (np.float32, np.float64) else x.astype(np.float32))
    size = tile_size(tile, rows.shape)
    scales = tile_scales(rows, find_format(format).largest, size, power_of_two)
    ratio = rows / expand(scales, rows.shape, size)
    bits = None if seed is None else random_bits(rows.shape, seed, rows)
    values = round_to(ratio, format, bits=bits).reshape(x.shape).astype(x.dtype, copy=False)
    infinities = namespace(x).isinf(rows).sum(dtype=np.int64)
    if (counting := _counting.get()) is not None:
        counting.add(infinities)
    return Quantized(values, scales, infinities), QuantizeSaved(scales, form(x), tile)


@quantize.backward
def quantize_backward(saved, g):
    """From g = dL/dvalues to dL/dx, straight through (Bengio, Leonard and Courville 2013).

    values = round(x / s) is a staircase: its slope is 0 on every step and infinite between two, and the true
    gradient, 0 almost everywhere, would teach nothing. Two things are pretended:
        round(a) = a      the slope 1 that the staircase has in the mean over many steps
        s is a constant   although amax, one entry of the tile, moves with x
    and with them, for every entry on its own,
        values = x / s,    dL/dx = g / s.
    What is exact: dequantize multiplies by the same s, so through both of them dL/dx is the gradient that
    came in, to the bit where s is a power of two. Nothing is clipped in between (s makes room for the
    largest entry), so no entry loses its gradient. What is not: an optimizer sees a slope of 1 where a small
    step changes nothing at all. It helps because the master weights are kept in float32, where small steps
    add up until one of them reaches the next number of the grid.
    """
    scales, x, tile = saved
    if g[0] is None:  # a gradient at the scales alone, which are constants
        return (None,)
    g_rows = as_matrix(g[0])
    grad = g_rows / expand(scales, g_rows.shape, tile_size(tile, g_rows.shape))
    return (fit(grad.reshape(x.shape), x),)


@quantize.surrogate
def quantize_surrogate(saved, g):
    """L = g . x / s with s as it was: what backward differentiates."""
    rows = as_matrix(g[0])
    slope = rows / expand(saved.scales, rows.shape, tile_size(saved.tile, rows.shape))
    return lambda x: slope * as_matrix(x)


class DequantizeSaved(NamedTuple):
    """What backward reads."""

    values: Array  # (..., d)
    scales: Array  # (tiles down, tiles across)
    tile: Tile


@primitive
def dequantize(values, scales, *, tile=(1, SIDE)):
    """y = values * s, each entry with the scale of its tile.

    values (..., d), scales (tiles down, tiles across) as `quantize` gave them for the same tile
    -> y (..., d). Raises ValueError where scales has another shape.
    """
    rows = as_matrix(values)
    size = tile_size(tile, rows.shape)
    if scales.shape != scales_shape(rows.shape, size):
        raise ValueError(
            f"scales has shape {scales.shape}, but a matrix {rows.shape} has "
            f"{scales_shape(rows.shape, size)} tiles of {size[0]} x {size[1]}"
        )
    y = rows * expand(scales, rows.shape, size)
    return y.reshape(values.shape), DequantizeSaved(values, scales, tile)


@dequantize.backward
def dequantize_backward(saved, g):
    """From g = dL/dy to dL/dvalues and dL/dscales. Nothing is pretended here: y_i = v_i s, so

    dL/dv_i = g_i s
    dL/ds   = sum over the tile of g_i v_i           s stands in every entry of its tile
    """
    values, scales, tile = saved
    g_rows, rows = as_matrix(g), as_matrix(values)
    size = tile_size(tile, rows.shape)
    grad_values = (g_rows * expand(scales, rows.shape, size)).reshape(values.shape)
    grad_scales = in_tiles(g_rows * rows, size).sum(axis=(1, 3))
    return fit(grad_values, values), fit(grad_scales, scales)


def as_matrix(x: Array) -> Array:
    """All vectors of the last axis as rows (N, d); a number is one row."""
    return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1]) if x.ndim else x.reshape(1, 1)


def tile_size(tile: Tile, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tile, None being all of the matrix. Raises ValueError for a tile of nothing."""
    if tile is None:
        return max(shape[0], 1), max(shape[1], 1)
    rows, columns = tile
    if rows < 1 or columns < 1:
        raise ValueError(f"tile is {rows} x {columns}, but it has at least one row and one column")
    return rows, columns


def scales_shape(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, int]:
    """How many tiles cover a matrix, down and across."""
    return -(-shape[0] // tile[0]), -(-shape[1] // tile[1])


def expand(scales: Array, shape: tuple[int, ...], tile: tuple[int, int]) -> Array:
    """The scale of every entry of a matrix, (rows, columns)."""
    return scales.repeat(tile[0], axis=0)[: shape[0]].repeat(tile[1], axis=1)[:, : shape[1]]


def in_tiles(matrix: Array, tile: tuple[int, int]) -> Array:
    """(tiles down, rows, tiles across, columns); partial tiles are filled up with 0."""
    down, across = scales_shape(matrix.shape, tile)
    whole = namespace(matrix).zeros((down * tile[0], across * tile[1]), dtype=matrix.dtype)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole.reshape(down, tile[0], across, tile[1])


def tile_scales(rows: Array, largest: float, tile: tuple[int, int], power_of_two: bool) -> Array:
    """s for every tile (tiles down, tiles across): what makes its largest number the format's largest."""
    xp, real = namespace(rows), rows.dtype.type
    finite = xp.isfinite(rows)
    amax = in_tiles(xp.where(finite, abs(rows), 0), tile).max(axis=(1, 3))
    if not bool(finite.all()):
        known = in_tiles(~xp.isnan(rows), tile).any(axis=(1, 3))
        if not bool(known.all()):
            raise all_nan(rows.shape, tile, tuple(int(place) for place in xp.argwhere(~known)[0]))
    scales = xp.maximum(amax, real(LEAST_AMAX)) / real(largest)
    return power_of_two_above(scales) if power_of_two else scales


def all_nan(shape: tuple[int, ...], tile: tuple[int, int], place: tuple[int, ...]) -> FloatingPointError:
    """The error for a tile that has no number."""
    (top, bottom), (left, right) = (
        (index * side, min((index + 1) * side, length)) for index, side, length in zip(place, tile, shape)
    )
    return FloatingPointError(
        f"quantize: rows {top} to {bottom - 1}, columns {left} to {right - 1} of {shape[0]} x {shape[1]} are "
        "all NaN, so that the tile has no scale: tg.using(detect_anomaly=True) says where NaN came from"
    )
