"""fp8_linear, fused: factors are quantised in one pass each, and the products themselves are BLAS.

The numbers of FP8 stand in float32, scaled back, so that a product of two is exact to the last bit or so and
their sum is what float32 makes of it. x is kept as codes, a byte for each number; W and the gradient are
quantised again where they are needed, which costs less than keeping them would.
"""

from tinygrad_ds.kernels.cpu.accumulation import multiply
from tinygrad_ds.kernels.cpu.common import covered
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.quantize import from_tiles, in_tiles
from tinygrad_ds.ops.broadcast import fit, form
from tinygrad_ds.ops.fp8 import Cached, Fp8LinearSaved
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import as_matrix
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, WEIGHT, X_AGAIN, G, X


def fp8_linear(x, weight, bias=None, *, recipe=DEEPSEEK_V3):
    check_inputs(x, weight)
    if not covered(x, weight) or (bias is not None and not covered(x, bias)):
        return NotImplemented
    factor, kept = factor_and_cache(contiguous(as_matrix(x)), recipe)
    y = multiply(factor, weight_factor(weight, recipe).T, recipe)
    if bias is not None:
        y += bias
    bias = None if bias is None else form(bias)
    saved = Fp8LinearSaved(kept, weight, bias, form(x), recipe)
    return y.reshape(*x.shape[:-1], weight.shape[0]), saved


def fp8_linear_backward_input(saved, g):
    recipe = saved.recipe
    sent = quantised(
        contiguous(as_matrix(g)), recipe.gradient_format, recipe.across, recipe, recipe.rounding(G)
    )
    grad_x = multiply(sent, weight_factor(saved.weight, recipe), recipe).reshape(saved.form.shape)
    return (grad_x, None) if saved.bias is None else (grad_x, None, None)


def fp8_linear_backward_weight(saved, g):
    recipe, rows = saved.recipe, contiguous(as_matrix(g))
    sent = quantised(rows, recipe.gradient_format, recipe.down, recipe, recipe.rounding(G_AGAIN))
    x = from_tiles(saved.x, recipe.kept_format, recipe.across)
    again = quantised(x, recipe.format, recipe.down, recipe, recipe.rounding(X_AGAIN))
    grad_weight = multiply(sent.T, again, recipe)
    return (None, grad_weight) if saved.bias is None else (None, grad_weight, fit(g, saved.bias))


def quantised(rows, format, tile, recipe, seed):
    """A contiguous matrix quantised and scaled back."""
    return in_tiles(rows, format, tile, recipe.power_of_two, seed, back=True).y


def weight_factor(weight, recipe, expert=0):
    """Q(W) (out, in)."""
    seed = recipe.rounding(WEIGHT, expert)
    return quantised(contiguous(weight), recipe.format, recipe.block, recipe, seed)


def factor_and_cache(rows, recipe):
    """Q(x), and the codes that are kept of it; both at once where they have one format."""
    same = recipe.kept_format == recipe.format
    made = in_tiles(
        rows, recipe.format, recipe.across, recipe.power_of_two, recipe.rounding(X), back=True, keep=same
    )
    return made.y, Cached(made.codes, made.scales) if same else cache_of(rows, recipe)


def cache_of(rows, recipe):
    """The codes that are kept of x, without Q(x)."""
    made = in_tiles(rows, recipe.kept_format, recipe.across, recipe.power_of_two, recipe.kept_seed, keep=True)
    return Cached(made.codes, made.scales)
