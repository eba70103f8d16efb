"""fp8_swiglu_linear, fp8_experts_in and fp8_experts_out, fused.

As experts.py and fp8.py: products are BLAS, one expert at a time. What is quantised along channels is
quantised for all rows at once, and W for all experts at once where their blocks end with them; what is
quantised along rows, for each expert.
"""

import numpy as np

from tinygrad_ds.device import to_host
from tinygrad_ds.kernels.cpu.accumulation import multiply
from tinygrad_ds.kernels.cpu.common import covered
from tinygrad_ds.kernels.cpu.experts import add_rows, buffer, gathered, swiglu_backward, weighted_swiglu
from tinygrad_ds.kernels.cpu.fp8 import cache_of, factor_and_cache, quantised, weight_factor
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.quantize import from_tiles
from tinygrad_ds.ops.broadcast import form
from tinygrad_ds.ops.experts import token_of_row, weight_of_row
from tinygrad_ds.ops.fp8_experts import Fp8ExpertsInSaved, Fp8ExpertsOutSaved
from tinygrad_ds.ops.fp8_swiglu import Fp8SwigluLinearSaved
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.moe import check_bounds, runs
from tinygrad_ds.ops.quantize import as_matrix
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, X_AGAIN, G, X


def fp8_swiglu_linear(gate_up, weight, *, recipe=DEEPSEEK_V3):
    rows = contiguous(as_matrix(gate_up))
    if not covered(gate_up, weight) or rows.shape[1] != 2 * weight.shape[1]:
        return NotImplemented
    factor = quantised(_hidden(rows), recipe.format, recipe.across, recipe, recipe.rounding(X))
    y = multiply(factor, weight_factor(weight, recipe).T, recipe)
    saved = Fp8SwigluLinearSaved(cache_of(rows, recipe), weight, form(gate_up), recipe)
    return y.reshape(*gate_up.shape[:-1], len(weight)), saved


def fp8_swiglu_linear_backward_input(saved, g):
    recipe, rows = saved.recipe, contiguous(as_matrix(g))
    sent = quantised(rows, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    grad_h = multiply(sent, weight_factor(saved.weight, recipe), recipe)
    kept = from_tiles(saved.gate_up, recipe.kept_format, recipe.across)
    grad, ones = np.empty_like(kept), np.ones(len(kept), kept.dtype)
    swiglu_backward(grad_h, kept, ones, grad, np.empty_like(ones))
    return grad.reshape(saved.form.shape), None


def fp8_swiglu_linear_backward_weight(saved, g):
    h = _hidden(from_tiles(saved.gate_up, saved.recipe.kept_format, saved.recipe.across))
    return None, _weight_product(contiguous(as_matrix(g)), h, saved.recipe, 0)


def fp8_experts_in(x, weight, position, offsets, *, recipe=DEEPSEEK_V3):
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, position.size, len(weight))
    check_inputs(x, weight)
    if not covered(x, weight):
        return NotImplemented
    sent, kept = factor_and_cache(contiguous(x), recipe)
    tokens, rows = token_of_row(np, position), buffer(runs(bounds), x.shape[1], x.dtype)
    factors = _weight_factors(weight, recipe, bounds)
    y = np.empty((position.size, weight.shape[1]), x.dtype)
    for e, start, stop in runs(bounds):
        y[start:stop] = multiply(gathered(sent, tokens[start:stop], rows), factors[e].T, recipe)
    return y, Fp8ExpertsInSaved(kept, weight, position, bounds, form(x), recipe)


def fp8_experts_in_backward_input(saved, g):
    recipe, tokens = saved.recipe, token_of_row(np, saved.position)
    sent = quantised(contiguous(g), recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    factors = _weight_factors(saved.weight, recipe, saved.bounds)
    grad_x = np.zeros(saved.form.shape, g.dtype)
    for e, start, stop in runs(saved.bounds):
        add_rows(multiply(sent[start:stop], factors[e], recipe), tokens[start:stop], grad_x)
    return grad_x, None, None, None


def fp8_experts_in_backward_weight(saved, g):
    recipe, bounds, tokens = saved.recipe, saved.bounds, token_of_row(np, saved.position)
    x = from_tiles(saved.x, recipe.kept_format, recipe.across)
    g, rows = contiguous(g), buffer(runs(bounds), x.shape[1], x.dtype)
    grad_weight = np.zeros_like(saved.weight)
    for e, start, stop in runs(bounds):
        copies = gathered(x, tokens[start:stop], rows)
        grad_weight[e] = _weight_product(g[start:stop], copies, recipe, e)
    return None, grad_weight, None, None


def fp8_experts_out(gate_up, weights, weight, position, offsets, *, recipe=DEEPSEEK_V3):
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, len(gate_up), len(weight))
    fits = gate_up.shape[1] == 2 * weight.shape[2] and position.size == len(gate_up)
    if not covered(gate_up, weights, weight) or not fits:
        return NotImplemented
    gate_up = contiguous(gate_up)
    sent = quantised(_hidden(gate_up), recipe.format, recipe.across, recipe, recipe.rounding(X))
    factors = _weight_factors(weight, recipe, bounds)
    tokens, of_row = token_of_row(np, position), weight_of_row(np, weights, position)
    y = np.zeros((len(position), weight.shape[1]), gate_up.dtype)
    for e, start, stop in runs(bounds):
        rows = multiply(sent[start:stop], factors[e].T, recipe)
        rows *= of_row[start:stop, None]
        add_rows(rows, tokens[start:stop], y)
    kept = cache_of(gate_up, recipe)
    return y, Fp8ExpertsOutSaved(kept, weights, weight, position, bounds, form(gate_up), recipe)


def fp8_experts_out_backward_input(saved, g):
    recipe, bounds, tokens = saved.recipe, saved.bounds, token_of_row(np, saved.position)
    of_row = weight_of_row(np, saved.weights, saved.position)
    sent = quantised(contiguous(g), recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    factors, rows = _weight_factors(saved.weight, recipe, bounds), buffer(runs(bounds), g.shape[1], g.dtype)
    kept = from_tiles(saved.gate_up, recipe.kept_format, recipe.across)
    grad, grad_of_row = np.empty_like(kept), np.empty_like(of_row)
    for e, start, stop in runs(bounds):
        here = slice(start, stop)
        u = multiply(gathered(sent, tokens[here], rows), factors[e], recipe)
        swiglu_backward(u, kept[here], of_row[here], grad[here], grad_of_row[here])
    return grad, grad_of_row[saved.position], None, None, None


def fp8_experts_out_backward_weight(saved, g):
    recipe, bounds, tokens = saved.recipe, saved.bounds, token_of_row(np, saved.position)
    of_row = weight_of_row(np, saved.weights, saved.position)
    h = _hidden(from_tiles(saved.gate_up, recipe.kept_format, recipe.across))
    g, rows = contiguous(g), buffer(runs(bounds), g.shape[1], g.dtype)
    grad_weight = np.zeros_like(saved.weight)
    for e, start, stop in runs(bounds):
        copies = gathered(g, tokens[start:stop], rows)
        copies *= of_row[start:stop, None]
        grad_weight[e] = _weight_product(copies, h[start:stop], recipe, e)
    return None, None, grad_weight, None, None


def _hidden(gate_up):
    """h = silu(gate) up."""
    h = np.empty((len(gate_up), gate_up.shape[1] // 2), gate_up.dtype)
    weighted_swiglu(gate_up, np.ones(len(h), h.dtype), h)
    return h


def _weight_product(g, x, recipe, expert):
    """Q'(g)^T Q'(x) of one expert's rows."""
    seeds = recipe.rounding(G_AGAIN, expert), recipe.rounding(X_AGAIN, expert)
    down = quantised(g, recipe.gradient_format, recipe.down, recipe, seeds[0])
    return multiply(down.T, quantised(x, recipe.format, recipe.down, recipe, seeds[1]), recipe)


def _weight_factors(weight, recipe, bounds):
    """Q(W_e) of every expert that has rows; of all at once where no block reaches into the next expert."""
    if recipe.seed is None and recipe.side is not None and weight.shape[1] % recipe.side == 0:
        return weight_factor(weight.reshape(-1, weight.shape[2]), recipe).reshape(weight.shape)
    return {e: weight_factor(weight[e], recipe, e) for e, _, _ in runs(bounds)}
