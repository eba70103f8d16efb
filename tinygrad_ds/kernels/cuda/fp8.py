"""fp8_linear and fp8_swiglu_linear on the device: factors quantised by quantize.cu, products by cuBLAS.

Nothing is read by the host. The numbers of FP8 stand in float32, scaled back; x is kept as codes. Tiles too
large for a block, and sums as the tensor cores take them, are the reference's.
"""

import cupy

from tinygrad_ds.kernels.cuda.common import contiguous, covered
from tinygrad_ds.kernels.cuda.quantize import fits, in_tiles, restored
from tinygrad_ds.kernels.cuda.swiglu import SwigluSaved, swiglu, swiglu_backward
from tinygrad_ds.ops.broadcast import fit, form
from tinygrad_ds.ops.fp8 import Cached, Fp8LinearSaved
from tinygrad_ds.ops.fp8_swiglu import Fp8SwigluLinearSaved
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import as_matrix, counter
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, WEIGHT, X_AGAIN, G, X


def fp8_linear(x, weight, bias=None, *, recipe=DEEPSEEK_V3):
    check_inputs(x, weight)
    if not takes(recipe, x, weight) or (bias is not None and not covered(x, bias)):
        return NotImplemented
    rows = contiguous(as_matrix(x))
    sent, kept = factor_and_cache(rows, recipe)
    y = sent @ factor(weight, recipe).T
    if bias is not None:
        y += bias
    saved = Fp8LinearSaved(kept, weight, bias if bias is None else form(bias), form(x), recipe)
    return y.reshape(*x.shape[:-1], weight.shape[0]), saved


def fp8_linear_backward_input(saved, g):
    recipe = saved.recipe
    sent = quantised(contiguous(as_matrix(g)), recipe.gradient_format, recipe.across, recipe, G)
    grad_x = (sent @ factor(saved.weight, recipe)).reshape(saved.form.shape)
    return (grad_x, None) if saved.bias is None else (grad_x, None, None)


def fp8_linear_backward_weight(saved, g):
    grad_weight = _weight_product(g, from_cache(saved.x, saved.recipe), saved.recipe)
    return (None, grad_weight) if saved.bias is None else (None, grad_weight, fit(g, saved.bias))


def fp8_swiglu_linear(gate_up, weight, *, recipe=DEEPSEEK_V3):
    if not takes(recipe, gate_up, weight) or gate_up.shape[-1] != 2 * weight.shape[1]:
        return NotImplemented
    rows = contiguous(as_matrix(gate_up))
    y = quantised(hidden(rows), recipe.format, recipe.across, recipe, X) @ factor(weight, recipe).T
    saved = Fp8SwigluLinearSaved(cache_of(rows, recipe), weight, form(gate_up), recipe)
    return y.reshape(*gate_up.shape[:-1], len(weight)), saved


def fp8_swiglu_linear_backward_input(saved, g):
    recipe = saved.recipe
    sent = quantised(contiguous(as_matrix(g)), recipe.gradient_format, recipe.across, recipe, G)
    kept = from_cache(saved.gate_up, recipe)
    halves = SwigluSaved(*cupy.split(kept, 2, axis=1))
    grads = swiglu_backward(halves, sent @ factor(saved.weight, recipe))
    return cupy.concatenate(grads, axis=1).reshape(saved.form.shape), None


def fp8_swiglu_linear_backward_weight(saved, g):
    return None, _weight_product(g, hidden(from_cache(saved.gate_up, saved.recipe)), saved.recipe)


def takes(recipe, x, weight):
    """Whether kernels cover a product: tiles that a block can take, sums in full."""
    plain = recipe.accumulation == "float32" and recipe.side is not None
    return plain and covered(x, weight) and fits(recipe.block, weight.shape[-2:])


def quantised(rows, format, tile, recipe, which):
    """A contiguous matrix, or a stack of them, quantised and scaled back."""
    options = {"back": True, "infinities": counter(cupy)}
    return in_tiles(rows, format, tile, recipe.power_of_two, recipe.rounding(which), **options).values


def factor(weight, recipe):
    """Q(W) (out, in), or Q(W_e) of every expert (E, out, in)."""
    return quantised(contiguous(weight), recipe.format, recipe.block, recipe, WEIGHT)


def factor_and_cache(rows, recipe):
    """Q(x), and the codes that are kept of it; both at once where they have one format."""
    if recipe.kept_format != recipe.format:
        return quantised(rows, recipe.format, recipe.across, recipe, X), cache_of(rows, recipe)
    options = {"back": True, "keep": True, "infinities": counter(cupy)}
    made = in_tiles(rows, recipe.format, recipe.across, recipe.power_of_two, recipe.kept_seed, **options)
    return made.values, Cached(made.codes, made.scales)


def cache_of(rows, recipe):
    """The codes and scales that are kept of a contiguous matrix."""
    options = {"keep": True, "infinities": counter(cupy)}
    made = in_tiles(rows, recipe.kept_format, recipe.across, recipe.power_of_two, recipe.kept_seed, **options)
    return Cached(made.codes, made.scales)


def from_cache(kept, recipe):
    """The matrix of codes and scales."""
    return restored(kept.codes, kept.scales, recipe.kept_format, recipe.side)


def hidden(gate_up):
    """h = silu(gate) up, (M, I)."""
    return swiglu(*cupy.split(gate_up, 2, axis=1))[0]


def _weight_product(g, x, recipe):
    """Q'(g)^T Q'(x), tiles along the rows."""
    sent = quantised(contiguous(as_matrix(g)), recipe.gradient_format, recipe.down, recipe, G_AGAIN)
    return sent.T @ quantised(contiguous(x), recipe.format, recipe.down, recipe, X_AGAIN)
