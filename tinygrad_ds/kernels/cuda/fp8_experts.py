"""fp8_experts_in and fp8_experts_out on the device: as experts.py, with factors quantised by quantize.cu.

Bounds of the experts stay in device memory: tiles along an expert's rows are found there by the kernel.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import contiguous, covered
from tinygrad_ds.kernels.cuda.experts import swiglu_backward_of, whole
from tinygrad_ds.kernels.cuda.fp8 import (
    cache_of,
    factor,
    factor_and_cache,
    from_cache,
    hidden,
    quantised,
    takes,
)
from tinygrad_ds.kernels.cuda.grouped import matrix_gradient, rows_times_matrix
from tinygrad_ds.kernels.cuda.moe import add_copies, choice_of_row, copies_of
from tinygrad_ds.kernels.cuda.quantize import down_experts
from tinygrad_ds.ops.fp8 import Cached
from tinygrad_ds.ops.quantize import counter
from tinygrad_ds.ops.recipe import DEEPSEEK_V3, G_AGAIN, X_AGAIN, Fp8Recipe, G, X


class Fp8ExpertsInSaved(NamedTuple):
    """The tokens' codes, and which choice each row is for."""

    x: Cached  # (N, d)
    weight: cupy.ndarray  # (E, out, d)
    position: cupy.ndarray  # (N, K)
    offsets: cupy.ndarray  # (E + 1,)
    choice: cupy.ndarray  # (M,)
    recipe: Fp8Recipe


def fp8_experts_in(x, weight, position, offsets, *, recipe=DEEPSEEK_V3):
    fits = position.size and len(offsets) == len(weight) + 1 and x.shape[1] == weight.shape[2]
    if not fits or not takes(recipe, x, weight):
        return NotImplemented
    x, position, offsets = contiguous(x), whole(position), whole(offsets)
    sent, kept = factor_and_cache(x, recipe)  # before it is copied
    choice = choice_of_row(position)
    y = rows_times_matrix(sent, factor(weight, recipe), offsets, choice, position.shape[1])
    return y, Fp8ExpertsInSaved(kept, weight, position, offsets, choice, recipe)


def fp8_experts_in_backward_input(saved, g):
    recipe = saved.recipe
    sent = quantised(contiguous(g), recipe.gradient_format, recipe.across, recipe, G)
    rows = rows_times_matrix(sent, factor(saved.weight, recipe), saved.offsets, transposed=True)
    return add_copies(rows, None, saved.position), None, None, None


def fp8_experts_in_backward_weight(saved, g):
    copies = copies_of(from_cache(saved.x, saved.recipe), saved.choice, saved.position.shape[1])
    return None, _weight_gradient(contiguous(g), copies, saved), None, None


class Fp8ExpertsOutSaved(NamedTuple):
    """The codes of the product before the activation, and where the rows belong."""

    gate_up: Cached  # (M, 2 I)
    weights: cupy.ndarray  # (N, K)
    weight: cupy.ndarray  # (E, d, I)
    position: cupy.ndarray  # (N, K)
    offsets: cupy.ndarray  # (E + 1,)
    choice: cupy.ndarray  # (M,)
    recipe: Fp8Recipe


def fp8_experts_out(gate_up, weights, weight, position, offsets, *, recipe=DEEPSEEK_V3):
    fits = weights.shape == position.shape and position.size == len(gate_up)
    fits = fits and len(offsets) == len(weight) + 1 and gate_up.shape[1] == 2 * weight.shape[2]
    if not fits or not covered(gate_up, weights) or not takes(recipe, gate_up, weight):
        return NotImplemented
    gate_up, position, offsets = contiguous(gate_up), whole(position), whole(offsets)
    sent = quantised(hidden(gate_up), recipe.format, recipe.across, recipe, X)
    rows = rows_times_matrix(sent, factor(weight, recipe), offsets)
    weights, choice = contiguous(weights), choice_of_row(position)
    kept = cache_of(gate_up, recipe)
    saved = Fp8ExpertsOutSaved(kept, weights, weight, position, offsets, choice, recipe)
    return add_copies(rows, weights, position), saved


def fp8_experts_out_backward_input(saved, g):
    recipe, of_tokens = saved.recipe, (saved.choice, saved.position.shape[1])
    sent = quantised(contiguous(g), recipe.gradient_format, recipe.across, recipe, G)
    u = rows_times_matrix(sent, factor(saved.weight, recipe), saved.offsets, *of_tokens, transposed=True)
    kept = from_cache(saved.gate_up, recipe)
    return *swiglu_backward_of(u, kept, saved.weights, saved.choice), None, None, None


def fp8_experts_out_backward_weight(saved, g):
    copies = copies_of(contiguous(g), saved.choice, saved.position.shape[1])
    copies *= saved.weights.reshape(-1)[saved.choice][:, None]
    return (
        None,
        None,
        _weight_gradient(copies, hidden(from_cache(saved.gate_up, saved.recipe)), saved),
        None,
        None,
    )


def _weight_gradient(g, x, saved):
    """Q'(g)^T Q'(x) of every expert's rows, tiles along them."""
    recipe = saved.recipe
    sent = _down(g, recipe.gradient_format, recipe.rounding(G_AGAIN), saved)
    again = _down(x, recipe.format, recipe.rounding(X_AGAIN), saved)
    return matrix_gradient(sent, again, saved.offsets, saved.weight.shape)


def _down(rows, format, seed, saved):
    """Q'(rows), the tiles of each expert its own."""
    recipe = saved.recipe
    return down_experts(rows, saved.offsets, format, recipe.side, recipe.power_of_two, seed, counter(cupy))
