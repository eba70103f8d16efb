"""Gradients in FP8: straight through a staircase, and the two products that re-tile their factors."""

import numpy as np

import tinygrad_ds as tg
from lab.cases import Case, Draw
from lab.exercises.making import LADDER, exercise, slip
from tinygrad_ds import Fp8Recipe, Tensor


def straight_through_cases(draw: Draw) -> Case:
    """Rows with tiles of two, the last one partial."""
    x = draw.reals(draw.size("time"), draw.size("d"))
    return Case((x * draw.among(1.0, 100.0),), {"side": 2})


def values_of(x: Tensor, *, side: int) -> Tensor:
    """The values of `quantize`."""
    return tg.quantize(x, tile=(1, side)).values


@exercise(
    "straight_through",
    after=("divide",),
    hint="Two things are pretended: round(a) = a, and s is a constant. What is left is a division.",
    function=values_of,
    maker=straight_through_cases,
)
def straight_through(x, *, side):
    """y = round(x / s) on the grid of E4M3, s = max(amax, 1e-4) / 448 for each `side` numbers of a row.

    x (N, d) -> y (N, d). Return (grad_x,), straight through: the true slope of a staircase teaches nothing.
    """
    s = np.empty_like(x)
    for start in range(0, x.shape[1], side):
        tile = slice(start, start + side)
        s[:, tile] = np.maximum(np.abs(x[:, tile]).max(axis=1, keepdims=True), 1e-4) / 448
    step = 2.0 ** (np.maximum(np.frexp(x / s)[1] - 1, -6) - 3)
    return np.rint(x / s / step) * step, (x, s)


def fp8_cases(draw: Draw) -> Case:
    """Matrices with several tiles each way."""
    rows, d, out = draw.size("time"), draw.size("d"), draw.size("out")
    return Case((draw.reals(rows, d), draw.reals(out, d)), {"side": 2})


def product_of(x: Tensor, weight: Tensor, *, side: int) -> Tensor:
    """The product with tiles of that side."""
    return tg.fp8_linear(x, weight, recipe=Fp8Recipe(side=side))


@exercise(
    "fp8_linear",
    after=("linear", "straight_through"),
    hint="Each product has its factors quantised with tiles along the axis that it sums over.",
    function=product_of,
    maker=fp8_cases,
)
def fp8_linear(x, weight, *, side):
    """y = Q(x) Q(W)^T, x in tiles of 1 x side, W in blocks of side x side. Straight through Q.

    x (N, d), weight (out, d) -> y (N, out). Return (grad_x, grad_weight): both are products of quantised
    factors. saved has q(a, rows, columns), which quantises a in tiles of rows x columns and scales it back.
    For grad_weight the sum runs over the N rows, so g and the x that was kept are tiled along them.
    """

    def q(a, rows, columns):
        out = np.empty_like(a)
        for i in range(0, a.shape[0], rows):
            for j in range(0, a.shape[1], columns):
                tile = a[i : i + rows, j : j + columns]
                s = max(np.abs(tile).max(), 1e-4) / 448
                step = 2.0 ** (np.maximum(np.frexp(tile / s)[1] - 1, -6) - 3)
                out[i : i + rows, j : j + columns] = np.rint(tile / s / step) * step * s
        return out

    kept, factor = q(x, 1, side), q(weight, side, side)
    return kept @ factor.T, (kept, factor, q, side)


def scale_of(x, side):
    """s for every entry."""
    return LADDER["straight_through"].forward(x, side=side)[1][1]


@slip("straight_through", "zero", "the true slope of a staircase teaches nothing: go straight through it")
def _(g, x, *, side):
    return (np.zeros_like(x),)


@slip("straight_through", "scale", "the scale is forgotten: y is x / s, so the gradient is divided by s")
def _(g, x, *, side):
    return (g + 0 * x,)


@slip("straight_through", "scale", "multiplied by s, which is what dequantizing does: y is x / s")
def _(g, x, *, side):
    return (g * scale_of(x, side),)


@slip("straight_through", "term", "s is taken as a constant, so nothing reaches x through amax")
def _(g, x, *, side):
    s = scale_of(x, side)
    grad = g / s
    for start in range(0, x.shape[1], side):
        tile = slice(start, start + side)
        along = (g[:, tile] * x[:, tile] / s[:, tile] ** 2).sum(axis=1, keepdims=True) / 448
        largest = np.abs(x[:, tile]) == np.abs(x[:, tile]).max(axis=1, keepdims=True)
        grad[:, tile] -= np.where(largest, along * np.sign(x[:, tile]), 0)
    return (grad,)


def products(g, x, weight, side, of_input=(1, 0), of_weight=(0, 1), kept=(0, 1)):
    """Both gradients with factors tiled so: 0 stands for `side`, None for a factor that is left as it is."""
    q = LADDER["fp8_linear"].forward(x, weight, side=side)[1][2]

    def tiled(a, tile):
        return a if tile is None else q(a, *(size or side for size in tile))

    sent, down = tiled(g, of_input), tiled(g, of_weight)
    return sent @ q(weight, side, side), down.T @ tiled(q(x, 1, side), kept)


@slip("fp8_linear", "axis", "x is not re-tiled: the weight's gradient sums over rows, so its tiles go down")
def _(g, x, weight, *, side):
    return products(g, x, weight, side, kept=None)


@slip("fp8_linear", "axis", "g is not re-tiled: its tiles go down the rows for the weight's gradient")
def _(g, x, weight, *, side):
    return products(g, x, weight, side, of_weight=(1, 0))


@slip("fp8_linear", "axis", "g is tiled down the rows for the input too, but that product sums across them")
def _(g, x, weight, *, side):
    return products(g, x, weight, side, of_input=(0, 1))


@slip("fp8_linear", "missing factor", "g is not quantised: both products of the backward run in FP8 too")
def _(g, x, weight, *, side):
    return products(g, x, weight, side, of_input=None, of_weight=None)


@slip("fp8_linear", "missing factor", "neither factor of the weight's gradient is tiled along the rows")
def _(g, x, weight, *, side):
    return products(g, x, weight, side, of_weight=(1, 0), kept=None)
