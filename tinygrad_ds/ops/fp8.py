"""Linear with its three products in FP8, as DeepSeek-V3 trains (section 3.3). Reference form.

                       left factor, its tiles            right factor, its tiles         summed over
    forward            x        1 x 128                  W          128 x 128            in
    input gradient     g        1 x 128                  W          128 x 128            out
    weight gradient    g      128 x 1                    x          128 x 1              rows

A tile must not be longer than 1 across the axis that is not summed over, or many rows would share the scale
of one. So x is quantised along its channels in the forward and again, "re-tiled", along its rows for the
weight gradient; for that, only its FP8 codes and scales are kept. Both factors stand on the grid of FP8,
and their products are exact in float32: what is simulated is the rounding of factors and, if wished, of sums.
What comes out, gradients of weights among it, is not rounded.
"""

from typing import NamedTuple

from tinygrad_ds.device import Array
from tinygrad_ds.dtypes import result_type
from tinygrad_ds.formats import decode, encode, find_format
from tinygrad_ds.ops.accumulation import check_accumulation, multiply
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import SIDE, Tile, as_matrix, dequantize, quantize
from tinygrad_ds.primitive import primitive


class Recipe(NamedTuple):
    """The options of an FP8 product."""

    format: str
    gradient_format: str
    cache_format: str
    side: int | None
    power_of_two: bool
    seed: int | None
    accumulation: str
    promote_every: int | None

    def tile(self, kind: str) -> Tile:
        """The tiles "across" (1 x 128) a row, "down" (128 x 1) a column, or of a "block"."""
        if self.side is None:
            return None
        return {"across": (1, self.side), "down": (self.side, 1), "block": (self.side, self.side)}[kind]

    def multiply(self, a: Array, b: Array) -> Array:
        """a b with the sums of this recipe."""
        return multiply(a, b, self.accumulation, self.promote_every)


# Which random numbers a rounding takes: its own, and the weight the same in forward and backward.
X, WEIGHT, G, X_AGAIN, G_AGAIN, CACHE = range(6)


class Cached(NamedTuple):
    """x as it is kept for the weight gradient."""

    codes: Array  # (N, in) uint8, or uint16 for e5m6
    scales: Array  # (N, tiles across)


class Fp8LinearSaved(NamedTuple):
    """What both halves of the derivative need."""

    cached: Cached
    weight: Array  # (out, in)
    bias: Form | None
    x: Form
    recipe: Recipe
    infinities: Array  # () int64: how many in x became the largest number


@primitive(weights=(1, 2))
def fp8_linear(
    x,
    weight,
    bias=None,
    *,
    format="e4m3",
    gradient_format="e4m3",
    cache_format=None,
    side=SIDE,
    power_of_two=False,
    seed=None,
    accumulation="float32",
    promote_every=SIDE,
):
    """y = Q(x) Q(W)^T + b: each factor quantised, multiplied and scaled back.

    x (..., in), weight (out, in), bias (out,) or none -> y (..., out).
    format: that of x and W; gradient_format: that of the gradient that arrives; cache_format: that in which x
    is kept for the weight gradient, None for the same as `format` ("e5m6" with power_of_two is DeepSeek's
    choice for the Linear behind attention). side: of the tiles; None: one scale for each whole factor.
    power_of_two, seed: see `quantize`; each rounding draws its own bits from the seed, W the same ones in
    forward and backward. accumulation, promote_every: see `ops/accumulation.py`.
    Raises ValueError where `in` differs and for options that are none; FloatingPointError for a tile that is
    all NaN.
    """
    check_inputs(x, weight)
    check_accumulation(accumulation, promote_every)
    find_format(gradient_format)
    recipe = Recipe(
        format, gradient_format, cache_format or format, side, power_of_two, seed, accumulation, promote_every
    )
    rows = as_matrix(x)
    quantised, infinities = _quantise(rows, format, "across", recipe, X)
    cached = _cache(rows, recipe)
    y = recipe.multiply(quantised, _quantise_weight(weight, recipe).T)
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None:
        y = y + bias
    y = y.astype(result_type([x, weight], []), copy=False)
    saved = Fp8LinearSaved(cached, weight, None if bias is None else form(bias), form(x), recipe, infinities)
    return y, saved


@fp8_linear.backward_input
def fp8_linear_backward_input(saved, g):
    """From g = dL/dy to dL/dx.

    y_o = sum_i Q(W)_oi Q(x)_i + b_o. Straight through Q (see `quantize_backward`), dQ(x)_i/dx_i = 1, so
        dL/dx_i = sum_o g_o Q(W)_oi,   that is   dL/dx = g Q(W),
    exact so far: it is the derivative of y with the W that was used. But this product runs in FP8 too, with
        dL/dx = Q(g) Q(W),
    and g is quantised along out, over which is summed: an error of its own, of mean 0 but for underflow.
    """
    g = as_matrix(g)
    quantised, _ = _quantise(g, saved.recipe.gradient_format, "across", saved.recipe, G)
    grad = saved.recipe.multiply(quantised, _quantise_weight(saved.weight, saved.recipe))
    grad_x = fit(grad.reshape(saved.x.shape), saved.x)
    return (grad_x, None) if saved.bias is None else (grad_x, None, None)


@fp8_linear.backward_weight
def fp8_linear_backward_weight(saved, g):
    """From g = dL/dy to dL/dW and dL/db, both summed over all rows n of x.

    Straight through Q(W), dL/dW_oi = sum_n g_no Q(x)_ni, that is g^T Q(x). Now the sum runs over rows, and
    both factors are quantised along them, x from what the cache kept of it, Qc(x):
        dL/dW = Q'(g)^T Q'(Qc(x)),    Q' with tiles of 128 rows and one column.
    So x was rounded twice. With scales that are powers of two, values and codes differ by a shift of the
    exponent and the second rounding changes only what falls below the grid of the new tile.
        dL/db_o = sum_n g_no          no product, so nothing is rounded
    """
    recipe = saved.recipe
    g_rows = as_matrix(g)
    quantised, _ = _quantise(g_rows, recipe.gradient_format, "down", recipe, G_AGAIN)
    x = _from_cache(saved.cached, recipe, g_rows.dtype)
    again, _ = _quantise(x, recipe.format, "down", recipe, X_AGAIN)
    grad_weight = fit(recipe.multiply(quantised.T, again), saved.weight)
    return (None, grad_weight) if saved.bias is None else (None, grad_weight, fit(g, saved.bias))


@fp8_linear.surrogate
def fp8_linear_surrogate(saved, g, x, weight, bias=None, **_):
    """L = Q(g) . x Q(W)^T + Q'(g) . Q'(Qc(x)) W^T + g . b with the Q of each as they were."""
    recipe, rows = saved.recipe, as_matrix(g)
    across, _ = _quantise(rows, recipe.gradient_format, "across", recipe, G)
    down, _ = _quantise(rows, recipe.gradient_format, "down", recipe, G_AGAIN)
    again, _ = _quantise(
        _from_cache(saved.cached, recipe, rows.dtype), recipe.format, "down", recipe, X_AGAIN
    )
    terms = across * (as_matrix(x) @ _quantise_weight(saved.weight, recipe).T) + down * (again @ weight.T)
    return terms if bias is None else terms + rows * bias


def _quantise(rows: Array, format: str, kind: str, recipe: Recipe, stream: int) -> tuple[Array, Array]:
    """Q(rows): quantised and scaled back; and the number of infinities in rows."""
    tile = recipe.tile(kind)
    given, _ = quantize.forward(
        rows, format=format, tile=tile, power_of_two=recipe.power_of_two, seed=_stream(recipe, stream)
    )
    return dequantize.forward(given.values, given.scales, tile=tile)[0], given.infinities


def _quantise_weight(weight: Array, recipe: Recipe) -> Array:
    """Q(W) (out, in), the same each time."""
    return _quantise(weight, recipe.format, "block", recipe, WEIGHT)[0]


def _cache(rows: Array, recipe: Recipe) -> Cached:
    """The codes and scales of x that are kept: those of the forward product, if the format is the same."""
    stream = X if recipe.cache_format == recipe.format else CACHE
    given, _ = quantize.forward(
        rows,
        format=recipe.cache_format,
        tile=recipe.tile("across"),
        power_of_two=recipe.power_of_two,
        seed=_stream(recipe, stream),
    )
    return Cached(encode(given.values, recipe.cache_format), given.scales)


def _from_cache(cached: Cached, recipe: Recipe, dtype: str) -> Array:
    """x (N, in) as the cache kept it."""
    values = decode(cached.codes, recipe.cache_format, dtype)
    return dequantize.forward(values, cached.scales.astype(dtype), tile=recipe.tile("across"))[0]


def _stream(recipe: Recipe, stream: int) -> int | None:
    """The seed of one rounding among those of a call."""
    return None if recipe.seed is None else recipe.seed * 8 + stream
