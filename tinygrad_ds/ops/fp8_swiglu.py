"""The Linear behind a SwiGLU in FP8, with nothing kept of the hidden layer: see ops/fp8.py for the products.

    fp8_swiglu_linear(gate_up, W)                            as linear(swiglu(gate, up), W)

Kept are the FP8 codes of the SwiGLU's two inputs; its output is made again from them in the backward, as
DeepSeek-V3 does (section 3.3.3).
"""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.dtypes import result_type
from tinygrad_ds.ops.activation import logistic
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.ops.fp8 import Cached, cached, from_cache, quantised, quantised_weight
from tinygrad_ds.ops.matmul import check_inputs
from tinygrad_ds.ops.quantize import as_matrix
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, X_AGAIN, Fp8Recipe, G, X
from tinygrad_ds.primitive import primitive


class Fp8SwigluLinearSaved(NamedTuple):
    """What both halves of the derivative need: no hidden layer."""

    gate_up: Cached
    weight: Array  # (out, I)
    form: Form  # of gate_up
    recipe: Fp8Recipe


@primitive(weights=(1,))
def fp8_swiglu_linear(gate_up, weight, *, recipe=DEEPSEEK_V3):
    """y = Q(h) Q(W)^T with h = silu(gate) up.

    gate_up (..., 2 I) = [gate | up], weight (out, I) -> y (..., out). Errors as for `fp8_linear`;
    what is kept in the cache's format is gate_up.
    """
    rows = as_matrix(gate_up)
    h = hidden(rows)
    check_inputs(h, weight)
    y = recipe.multiply(
        quantised(h, recipe.format, recipe.across, recipe, recipe.rounding(X)),
        quantised_weight(weight, recipe).T,
    )
    y = y.reshape(*gate_up.shape[:-1], len(weight)).astype(result_type([gate_up, weight], []), copy=False)
    return y, Fp8SwigluLinearSaved(cached(rows, recipe), weight, form(gate_up), recipe)


@fp8_swiglu_linear.backward_input
def fp8_swiglu_linear_backward_input(saved, g):
    """From g = dL/dy to dL/dgate_up. As in `fp8_linear`, straight through Q(h),

        dL/dh = Q(g) Q(W),
    and on through h = gate sigma(gate) up, at the gate and up that the cache kept:
        dL/dup   = dL/dh gate sigma(gate)
        dL/dgate = dL/dh up sigma(gate) (1 + gate (1 - sigma(gate)))
    The slopes are those of a point beside the one where y was computed, off by the rounding of the cache.
    """
    recipe, rows = saved.recipe, as_matrix(g)
    sent = quantised(rows, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    grad_h = recipe.multiply(sent, quantised_weight(saved.weight, recipe))
    by_gate, by_up = slopes(from_cache(saved.gate_up, recipe, rows.dtype))
    grad = namespace(g).concatenate([grad_h * by_gate, grad_h * by_up], axis=-1)
    return fit(grad.reshape(saved.form.shape), saved.form), None


@fp8_swiglu_linear.backward_weight
def fp8_swiglu_linear_backward_weight(saved, g):
    """From g = dL/dy to dL/dW = Q'(g)^T Q'(h), tiles along the rows, h made again from the cache."""
    recipe, rows = saved.recipe, as_matrix(g)
    sent = quantised(rows, recipe.gradient_format, recipe.down, recipe, recipe.rounding(G_AGAIN))
    h = hidden(from_cache(saved.gate_up, recipe, rows.dtype))
    again = quantised(h, recipe.format, recipe.down, recipe, recipe.rounding(X_AGAIN))
    return None, fit(recipe.multiply(sent.T, again), saved.weight)


@fp8_swiglu_linear.surrogate
def fp8_swiglu_linear_surrogate(saved, g):
    """L = dL/dh . (slopes of h . gate_up) + Q'(g) . Q'(h) W^T with all but gate_up and W as they were."""
    recipe, rows = saved.recipe, as_matrix(g)
    sent = quantised(rows, recipe.gradient_format, recipe.across, recipe, recipe.rounding(G))
    down = quantised(rows, recipe.gradient_format, recipe.down, recipe, recipe.rounding(G_AGAIN))
    kept = from_cache(saved.gate_up, recipe, rows.dtype)
    again = quantised(hidden(kept), recipe.format, recipe.down, recipe, recipe.rounding(X_AGAIN))
    factor = quantised_weight(saved.weight, recipe)

    def terms(gate_up, weight):
        return sent * (along(kept, as_matrix(gate_up)) @ factor.T), down * (again @ weight.T)

    return terms


def hidden(gate_up: Array) -> Array:
    """h = silu(gate) up, (M, I)."""
    gate, up = namespace(gate_up).split(gate_up, 2, axis=-1)
    return gate * logistic(gate) * up


def slopes(gate_up: Array) -> tuple[Array, Array]:
    """dh/dgate and dh/dup, (M, I) each."""
    gate, up = namespace(gate_up).split(gate_up, 2, axis=-1)
    sigma = logistic(gate)
    return up * sigma * (1 + gate * (1 - sigma)), gate * sigma


def along(gate_up: Array, moved: Array) -> Array:
    """What h becomes, to first order around gate_up, if gate and up are `moved`; but for a constant."""
    by_gate, by_up = slopes(gate_up)
    gate, up = namespace(moved).split(moved, 2, axis=-1)
    return by_gate * gate + by_up * up
