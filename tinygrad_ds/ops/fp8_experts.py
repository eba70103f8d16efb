"""Into the experts and out of them, in FP8: see ops/fp8.py for the products and ops/experts.py for the rest.

    fp8_experts_in(x, W, position, offsets)                  as experts_in
    fp8_experts_out(gate_up, weights, W, position, offsets)  as experts_out

The tokens on their way in are quantised once, before they are copied: that is DeepSeek-V3's dispatch in FP8,
a quarter of what float32 would send. Of the hidden layer only the codes of the SwiGLU's inputs are kept.
"""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace, to_host
from tinygrad_ds.dtypes import result_type
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.ops.experts import token_of_row, weight_of_row
from tinygrad_ds.ops.fp8 import Cached, cached, from_cache, quantised, quantised_weight
from tinygrad_ds.ops.fp8_swiglu import along, hidden, slopes
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.moe import check_bounds, runs
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, X_AGAIN, Fp8Recipe, G, X
from tinygrad_ds.primitive import primitive


class Fp8ExpertsInSaved(NamedTuple):
    """What both halves read: the tokens' codes, not those of their copies."""

    x: Cached
    weight: Array  # (E, out, d)
    position: Array  # (N, K)
    bounds: list[int]
    form: Form  # of x
    recipe: Fp8Recipe


@primitive(weights=(1,))
def fp8_experts_in(x, weight, position, offsets, *, recipe=DEEPSEEK_V3):
    """y_r = Q(W_e) Q(x)_n for row r = position[n, k], which is a row of expert e.

    x (N, d), weight (E, out, d), position (N, K), offsets (E + 1,) as `expert_order` gives them
    -> y (N K, out). Errors as for `fp8_linear`; every expert's matrix has tiles of its own.
    """
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, position.size, len(weight))
    check_inputs(x, weight)
    xp = namespace(x)
    sent = quantised(x, recipe.format, recipe.across, recipe, recipe.rounding(X))  # before it is copied
    rows = sent[token_of_row(xp, position)]  # (M, d)
    y = xp.empty((len(rows), weight.shape[1]), dtype=result_type([x, weight], []))
    for e, start, stop in runs(bounds):
        y[start:stop] = recipe.multiply(rows[start:stop], quantised_weight(weight[e], recipe, e).T)
    return y, Fp8ExpertsInSaved(cached(x, recipe), weight, position, bounds, form(x), recipe)


@fp8_experts_in.backward_input
def fp8_experts_in_backward_input(saved, g):
    """From g = dL/dy to dL/dx.

    A row's copy of its token gets Q(g)_r Q(W_e), and the token the sum over its K copies, in full precision:
        dL/dx_n = sum_k (Q(g) Q(W_e))_{position[n, k]}
    """
    recipe, xp = saved.recipe, namespace(g)
    sent = quantised(g, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    grad_rows = xp.empty((len(g), saved.form.shape[1]), dtype=g.dtype)
    for e, start, stop in runs(saved.bounds):
        weight = quantised_weight(saved.weight[e], recipe, e)
        grad_rows[start:stop] = recipe.multiply(sent[start:stop], weight)
    return fit(grad_rows[saved.position].sum(axis=1), saved.form), None, None, None


@fp8_experts_in.backward_weight
def fp8_experts_in_backward_weight(saved, g):
    """From g = dL/dy to dL/dW_e = Q'(g)^T Q'(Qc(x)): the rows of one expert, tiles along them.

    The copies are made again from the cache, and re-tiled within their expert.
    """
    recipe, xp = saved.recipe, namespace(g)
    x = from_cache(saved.x, recipe, g.dtype)[token_of_row(xp, saved.position)]
    grad_weight = xp.zeros_like(saved.weight)
    for e, start, stop in runs(saved.bounds):
        grad_weight[e] = weight_product(g[start:stop], x[start:stop], recipe, e)
    return None, grad_weight, None, None


@fp8_experts_in.surrogate
def fp8_experts_in_surrogate(saved, g):
    """L = Q(g) . x Q(W_e)^T + dL/dW . W with the Q of each as they were."""
    recipe, tokens = saved.recipe, token_of_row(namespace(g), saved.position)
    sent = quantised(g, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    factors = [quantised_weight(weight, recipe, e) for e, weight in enumerate(saved.weight)]
    grad_weight = fp8_experts_in.backward_weight(saved, g)[1]

    def terms(x, weight, position, offsets):
        rows, products = x[tokens], sent.copy()
        for e, start, stop in runs(saved.bounds):
            products[start:stop] *= rows[start:stop] @ factors[e].T
        return products, grad_weight * weight

    return terms


def weight_product(g: Array, x: Array, recipe: Fp8Recipe, expert: int) -> Array:
    """Q'(g)^T Q'(x) of one expert's rows."""
    seeds = recipe.rounding(G_AGAIN, expert), recipe.rounding(X_AGAIN, expert)
    down = quantised(g, recipe.gradient_format, recipe.down, recipe, seeds[0])
    return recipe.multiply(down.T, quantised(x, recipe.format, recipe.down, recipe, seeds[1]))


class Fp8ExpertsOutSaved(NamedTuple):
    """What both halves read: no hidden layer."""

    gate_up: Cached
    weights: Array  # (N, K)
    weight: Array  # (E, d, I)
    position: Array  # (N, K)
    bounds: list[int]
    form: Form  # of gate_up
    recipe: Fp8Recipe


@primitive(weights=(2,))
def fp8_experts_out(gate_up, weights, weight, position, offsets, *, recipe=DEEPSEEK_V3):
    """y_n = sum_k w[n, k] Q(W_e) Q(h)_r with r = position[n, k] and h = silu(gate) up.

    gate_up (M, 2 I) = [gate | up], weights (N, K), weight (E, d, I), position (N, K), offsets (E + 1,)
    -> y (N, d). The sum over k is in full precision. Errors as for `fp8_linear`.
    """
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, len(gate_up), len(weight))
    h, xp = hidden(gate_up), namespace(gate_up)
    check_inputs(h, weight)
    sent = quantised(h, recipe.format, recipe.across, recipe, recipe.rounding(X))
    rows = xp.empty((len(h), weight.shape[1]), dtype=result_type([gate_up, weight], []))
    for e, start, stop in runs(bounds):
        rows[start:stop] = recipe.multiply(sent[start:stop], quantised_weight(weight[e], recipe, e).T)
    y = (weights[:, :, None] * rows[position]).sum(axis=1)
    kept = cached(gate_up, recipe)
    return y, Fp8ExpertsOutSaved(kept, weights, weight, position, bounds, form(gate_up), recipe)


@fp8_experts_out.backward_input
def fp8_experts_out_backward_input(saved, g):
    """From g = dL/dy to dL/dgate_up and dL/dweights. For row r = position[n, k] of expert e, w = w[n, k]:

    u_r = Q(W_e)^T Q(g)_n                    one product for each expert
    dL/dw[n, k] = u_r . h_r                  h made again from the cache
    dL/dh_r     = w u_r                      and on to gate and up as in `fp8_swiglu_linear`
    """
    grad_weights, u, kept = _sent_back(saved, g)
    grad_h = weight_of_row(namespace(g), saved.weights, saved.position)[:, None] * u
    by_gate, by_up = slopes(kept)
    grad = namespace(g).concatenate([grad_h * by_gate, grad_h * by_up], axis=-1)
    return fit(grad, saved.form), fit(grad_weights, saved.weights), None, None, None


@fp8_experts_out.backward_weight
def fp8_experts_out_backward_weight(saved, g):
    """From g = dL/dy to dL/dW_e = sum_r Q'(w g_n) Q'(h_r)^T over the rows of expert e, tiles along them.

    The gradient at a row of expert e is w g_n: the weight is in it before it is quantised.
    """
    recipe, xp = saved.recipe, namespace(g)
    w = weight_of_row(xp, saved.weights, saved.position)[:, None]
    g_rows = w * g[token_of_row(xp, saved.position)]
    h = hidden(from_cache(saved.gate_up, recipe, g.dtype))
    grad_weight = xp.zeros_like(saved.weight)
    for e, start, stop in runs(saved.bounds):
        grad_weight[e] = weight_product(g_rows[start:stop], h[start:stop], recipe, e)
    return None, None, grad_weight, None, None


@fp8_experts_out.surrogate
def fp8_experts_out_surrogate(saved, g):
    """L = w u . (slopes of h . gate_up) + dL/dw . w + dL/dW . W, each with the others as they were."""
    grad_weights, u, kept = _sent_back(saved, g)
    grad_h = weight_of_row(namespace(g), saved.weights, saved.position)[:, None] * u
    grad_weight = fp8_experts_out.backward_weight(saved, g)[2]
    return lambda gate_up, weights, weight, position, offsets: (
        grad_h * along(kept, gate_up),
        grad_weights * weights,
        grad_weight * weight,
    )


def _sent_back(saved: Fp8ExpertsOutSaved, g: Array) -> tuple[Array, Array, Array]:
    """dL/dweights (N, K), u (M, I) and the gate_up of the cache."""
    recipe, xp = saved.recipe, namespace(g)
    sent = quantised(g, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    rows = sent[token_of_row(xp, saved.position)]  # (M, d)
    u = xp.empty((len(rows), saved.weight.shape[2]), dtype=g.dtype)
    for e, start, stop in runs(saved.bounds):
        u[start:stop] = recipe.multiply(rows[start:stop], quantised_weight(saved.weight[e], recipe, e))
    kept = from_cache(saved.gate_up, recipe, g.dtype)
    return (u * hidden(kept)).sum(axis=-1)[saved.position], u, kept
