"""fp8_linear on the device: factors quantised by quantize.cu, products by cuBLAS, nothing read by the host.

The numbers of FP8 stand in float32, scaled back; x is kept as codes. Tiles too large for a block, and sums as
the tensor cores take them, are the reference's.
"""

import cupy

from tinygrad_ds.formats import decode, encode
from tinygrad_ds.kernels.cuda.common import contiguous, covered
from tinygrad_ds.kernels.cuda.quantize import fits, in_tiles
from tinygrad_ds.ops.broadcast import fit, form
from tinygrad_ds.ops.fp8 import Cached, Fp8LinearSaved
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import as_matrix, counter, dequantize
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, WEIGHT, X_AGAIN, G, X


def fp8_linear(x, weight, bias=None, *, recipe=DEEPSEEK_V3):
    check_inputs(x, weight)
    plain = recipe.accumulation == "float32" and recipe.side is not None
    arrays = (x, weight) if bias is None else (x, weight, bias)
    if not plain or not covered(*arrays) or not fits(recipe.block, weight.shape):
        return NotImplemented
    rows = contiguous(as_matrix(x))
    y = _quantised(rows, recipe.format, recipe.across, recipe, X) @ _weight(weight, recipe).T
    if bias is not None:
        y += bias
    kept = in_tiles(rows, recipe.kept_format, recipe.across, recipe.power_of_two, recipe.kept_seed)
    codes = Cached(encode(kept.values, recipe.kept_format), kept.scales)
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
    values = decode(saved.x.codes, recipe.kept_format, rows.dtype)
    kept, _ = dequantize.forward(values, saved.x.scales, tile=recipe.across)
    grad_weight = sent.T @ _quantised(contiguous(kept), recipe.format, recipe.down, recipe, X_AGAIN)
    return (None, grad_weight) if saved.bias is None else (None, grad_weight, fit(g, saved.bias))


def _quantised(rows, format, tile, recipe, which):
    """A contiguous matrix quantised and scaled back."""
    options = {"back": True, "infinities": counter(cupy)}
    return in_tiles(rows, format, tile, recipe.power_of_two, recipe.rounding(which), **options).values


def _weight(weight, recipe):
    """Q(W) (out, in)."""
    return _quantised(contiguous(weight), recipe.format, recipe.block, recipe, WEIGHT)
