"""fp8_linear on the device: factors quantised by quantize.cu, products by cuBLAS, nothing read by the host.

The numbers of FP8 stand in float32, scaled back; x is kept as codes. Tiles too large for a block, and sums as
the tensor cores take them, are the reference's.
"""

from tinygrad_ds.formats import decode, encode
from tinygrad_ds.kernels.cuda.common import contiguous, covered
from tinygrad_ds.kernels.cuda.quantize import fits, in_tiles
from tinygrad_ds.ops.broadcast import fit, form
from tinygrad_ds.ops.fp8 import CACHE, G_AGAIN, WEIGHT, X_AGAIN, Cached, Fp8LinearSaved, G, X, make_recipe
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import SIDE, as_matrix, dequantize


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
    check_inputs(x, weight)
    recipe = make_recipe(
        format, gradient_format, cache_format, side, power_of_two, seed, accumulation, promote_every
    )
    plain = covered(x, weight) and (bias is None or covered(x, bias)) and accumulation == "float32"
    if not plain or side is None or not fits((side, side), (side, side)):
        return NotImplemented
    rows = contiguous(as_matrix(x))
    y = _quantised(rows, format, recipe.across, recipe, X) @ _weight(weight, recipe).T
    if bias is not None:
        y += bias
    same = recipe.cache_format == format
    kept = in_tiles(
        rows, recipe.cache_format, recipe.across, power_of_two, recipe.rounding(X if same else CACHE)
    )
    codes = Cached(encode(kept.values, recipe.cache_format), kept.scales)
    saved = Fp8LinearSaved(codes, weight, None if bias is None else form(bias), form(x), recipe)
    return y.reshape(*x.shape[:-1], weight.shape[0]), saved


def fp8_linear_backward_input(saved, g):
    recipe = saved.recipe
    sent = _quantised(contiguous(as_matrix(g)), recipe.gradient_format, recipe.across, recipe, G)
    grad_x = (sent @ _weight(saved.weight, recipe)).reshape(saved.form.shape)
    return (grad_x, None) if saved.bias is None else (grad_x, None, None)


def fp8_linear_backward_weight(saved, g):
    recipe, rows = saved.recipe, contiguous(as_matrix(g))
    sent = _quantised(rows, recipe.gradient_format, recipe.down, recipe, G_AGAIN)
    values = decode(saved.x.codes, recipe.cache_format, rows.dtype)
    kept, _ = dequantize.forward(values, saved.x.scales, tile=recipe.across)
    grad_weight = sent.T @ _quantised(contiguous(kept), recipe.format, recipe.down, recipe, X_AGAIN)
    return (None, grad_weight) if saved.bias is None else (None, grad_weight, fit(g, saved.bias))


def _quantised(rows, format, tile, recipe, which):
    """A contiguous matrix quantised and scaled back."""
    return in_tiles(rows, format, tile, recipe.power_of_two, recipe.rounding(which), back=True).values


def _weight(weight, recipe):
    """Q(W) (out, in)."""
    return _quantised(contiguous(weight), recipe.format, recipe.block, recipe, WEIGHT)
