"""Linear with its three products in FP8, as DeepSeek-V3 trains (section 3.3). Reference form.

                       left factor, its tiles            right factor, its tiles         summed over
    forward            x        1 x 128                  W          128 x 128            in
    input gradient     g        1 x 128                  W          128 x 128            out
    weight gradient    g      128 x 1                    x          128 x 1              rows

A tile is one number wide across the axes over which is not summed: only so can a scale be taken out of the
sum. (W is the exception, a compromise that makes its blocks the same both ways.) So x is quantised along its
channels in the forward and again, "re-tiled", along its rows for the weight gradient; for that, only its FP8
codes and scales are kept. Both factors stand on the grid of FP8, scaled back, in float32: what is simulated
is the rounding of factors and, if wished, of sums (ops/accumulation.py). Nothing that comes out is rounded,
weight gradients among it.
"""

from typing import NamedTuple

from tinygrad_ds.device import Array
from tinygrad_ds.dtypes import result_type
from tinygrad_ds.formats import decode, encode
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import Tile, as_matrix, dequantize, quantize
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, WEIGHT, X_AGAIN, Fp8Recipe, G, X
from tinygrad_ds.primitive import primitive


class Cached(NamedTuple):
    """x as it is kept for the weight gradient."""

    codes: Array  # (N, in) uint8, or uint16 for e5m6
    scales: Array  # (N, tiles across)


class Fp8LinearSaved(NamedTuple):
    """What both halves of the derivative need."""

    x: Cached
    weight: Array  # (out, in)
    bias: Form | None
    form: Form  # of x
    recipe: Fp8Recipe


@primitive(weights=(1, 2))
def fp8_linear(x, weight, bias=None, *, recipe=DEEPSEEK_V3):
    """y = Q(x) Q(W)^T + b, Q being what quantising leaves of a factor.

    x (..., in), weight (out, in), bias (out,) or none -> y (..., out).
    Raises ValueError where `in` differs; FloatingPointError for a tile that is all NaN.
    """
    check_inputs(x, weight)
    rows = as_matrix(x)
    y = recipe.multiply(
        quantised(rows, recipe.format, recipe.across, recipe, recipe.rounding(X)),
        quantised_weight(weight, recipe).T,
    ).reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None:
        y = y + bias
    y = y.astype(result_type([x, weight], []), copy=False)
    kept = None if bias is None else form(bias)
    return y, Fp8LinearSaved(cached(rows, recipe), weight, kept, form(x), recipe)


@fp8_linear.backward_input
def fp8_linear_backward_input(saved, g):
    """From g = dL/dy to dL/dx.

    y_o = sum_i Q(W)_oi Q(x)_i + b_o. Straight through Q (see `quantize_backward`), dQ(x)_i/dx_i = 1, so
        dL/dx_i = sum_o g_o Q(W)_oi,   that is   dL/dx = g Q(W),
    exact so far: the derivative of y with the W that was used. But this product runs in FP8 too,
        dL/dx = Q(g) Q(W),
    with g quantised along out, over which is summed: an error of its own, of mean 0 but for underflow.
    """
    recipe, rows = saved.recipe, as_matrix(g)
    sent = quantised(rows, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    grad = recipe.multiply(sent, quantised_weight(saved.weight, recipe))
    grad_x = fit(grad.reshape(saved.form.shape), saved.form)
    return (grad_x, None) if saved.bias is None else (grad_x, None, None)


@fp8_linear.backward_weight
def fp8_linear_backward_weight(saved, g):
    """From g = dL/dy to dL/dW and dL/db, both summed over all rows n of x.

    Straight through Q(W), dL/dW_oi = sum_n g_no Q(x)_ni, that is g^T Q(x). Now the sum runs over rows, and
    both factors are quantised along them, x from what the cache kept of it, Qc(x):
        dL/dW = Q'(g)^T Q'(Qc(x)),    Q' with tiles of 128 rows and one column.
    So x was rounded twice. Where scales are powers of two the second rounding changes only what falls below
    the grid of the new tile, for to divide by another power of two moves the exponent alone.
        dL/db_o = sum_n g_no          no product, so nothing is rounded
    """
    recipe, rows = saved.recipe, as_matrix(g)
    sent = quantised(rows, recipe.gradient_format, recipe.down, recipe, recipe.rounding(G_AGAIN))
    x = from_cache(saved.x, recipe, rows.dtype)
    again = quantised(x, recipe.format, recipe.down, recipe, recipe.rounding(X_AGAIN))
    grad_weight = fit(recipe.multiply(sent.T, again), saved.weight)
    return (None, grad_weight) if saved.bias is None else (None, grad_weight, fit(g, saved.bias))


@fp8_linear.surrogate
def fp8_linear_surrogate(saved, g):
    """L = Q(g) . x Q(W)^T + Q'(g) . Q'(Qc(x)) W^T + g . b with the Q of each as they were."""
    recipe, rows = saved.recipe, as_matrix(g)
    across = quantised(rows, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    down = quantised(rows, recipe.gradient_format, recipe.down, recipe, recipe.rounding(G_AGAIN))
    kept = from_cache(saved.x, recipe, rows.dtype)
    again = quantised(kept, recipe.format, recipe.down, recipe, recipe.rounding(X_AGAIN))
    factor = quantised_weight(saved.weight, recipe)

    def terms(x, weight, bias=None):
        products = across * (as_matrix(x) @ factor.T) + down * (again @ weight.T)
        return products if bias is None else products + rows * bias

    return terms


def quantised(rows: Array, format: str, tile: Tile, recipe: Fp8Recipe, seed: int | None) -> Array:
    """Q(rows): on the grid of the format, and scaled back."""
    given, _ = quantize.forward(rows, format=format, tile=tile, power_of_two=recipe.power_of_two, seed=seed)
    return dequantize.forward(given.values, given.scales, tile=tile)[0]


def quantised_weight(weight: Array, recipe: Fp8Recipe, expert: int = 0) -> Array:
    """Q(W) (out, in), the same each time."""
    return quantised(weight, recipe.format, recipe.block, recipe, recipe.rounding(WEIGHT, expert))


def cached(rows: Array, recipe: Fp8Recipe) -> Cached:
    """The codes and scales of x that are kept: those of the forward product, if the format is the same."""
    given, _ = quantize.forward(
        rows,
        format=recipe.kept_format,
        tile=recipe.across,
        power_of_two=recipe.power_of_two,
        seed=recipe.kept_seed,
    )
    return Cached(encode(given.values, recipe.kept_format), given.scales)


def from_cache(kept: Cached, recipe: Fp8Recipe, dtype: str) -> Array:
    """x (N, in) as the cache kept it."""
    values = decode(kept.codes, recipe.kept_format, dtype)
    return dequantize.forward(values, kept.scales.astype(dtype), tile=recipe.across)[0]
