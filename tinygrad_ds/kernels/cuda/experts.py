"""Into the experts and out of them on the device: grouped products that gather their rows themselves.

Bounds of the experts stay in device memory. Launches of grouped.cu and moe.cu; formulas in ops/experts.py.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, launch
from tinygrad_ds.kernels.cuda.grouped import matrix_gradient, rows_times_matrix
from tinygrad_ds.kernels.cuda.moe import add_copies, choice_of_row


class ExpertsInSaved(NamedTuple):
    """The tokens, and which choice each row is for."""

    x: cupy.ndarray  # (N, d)
    weight: cupy.ndarray  # (E, out, d)
    position: cupy.ndarray  # (N, K)
    offsets: cupy.ndarray  # (E + 1,)
    choice: cupy.ndarray  # (M,)


def experts_in(x, weight, position, offsets):
    if not covered(x, weight) or not position.size or len(offsets) != len(weight) + 1:
        return NotImplemented
    position, offsets = whole(position), whole(offsets)
    saved = ExpertsInSaved(contiguous(x), contiguous(weight), position, offsets, choice_of_row(position))
    return rows_times_matrix(saved.x, saved.weight, offsets, saved.choice, position.shape[1]), saved


def experts_in_backward_input(saved, g):
    _, weight, position, offsets, _ = saved
    rows = rows_times_matrix(contiguous(g), weight, offsets, transposed=True)
    return add_copies(rows, None, position), None, None, None


def experts_in_backward_weight(saved, g):
    x, weight, position, offsets, choice = saved
    of_tokens = choice, position.shape[1]
    grad = matrix_gradient(contiguous(g), x, offsets, weight.shape, *of_tokens, x_by_token=True)
    return None, grad, None, None


class ExpertsOutSaved(NamedTuple):
    """The product before the activation, and where the rows belong."""

    gate_up: cupy.ndarray  # (M, 2 I)
    weights: cupy.ndarray  # (N, K)
    weight: cupy.ndarray  # (E, d, I)
    position: cupy.ndarray  # (N, K)
    offsets: cupy.ndarray  # (E + 1,)
    choice: cupy.ndarray  # (M,)


def experts_out(gate_up, weights, weight, position, offsets):
    fits = weights.shape == position.shape and position.size == len(gate_up)
    if not covered(gate_up, weights, weight) or not fits or len(offsets) != len(weight) + 1:
        return NotImplemented
    position, offsets = whole(position), whole(offsets)
    given = contiguous(gate_up), contiguous(weights), contiguous(weight)
    saved = ExpertsOutSaved(*given, position, offsets, choice_of_row(position))
    rows = rows_times_matrix(_weighted_swiglu(saved), saved.weight, offsets)
    return add_copies(rows, None, position), saved


def experts_out_backward_input(saved, g):
    gate_up, weights, weight, position, offsets, choice = saved
    of_tokens = choice, position.shape[1]
    u = rows_times_matrix(contiguous(g), weight, offsets, *of_tokens, transposed=True)
    return *swiglu_backward_of(u, gate_up, weights, choice), None, None, None


def experts_out_backward_weight(saved, g):
    weight, position, offsets, choice = saved[2:]
    of_tokens = choice, position.shape[1]
    h = _weighted_swiglu(saved)
    grad = matrix_gradient(contiguous(g), h, offsets, weight.shape, *of_tokens, g_by_token=True)
    return None, None, grad, None, None


def swiglu_backward_of(u, gate_up, weights, choice):
    """dL/dgate_up (M, 2 I) and dL/dweights (N, K) from u (M, I), the gradient at the weighted rows of h."""
    grad_gate_up, grad_weights = cupy.empty_like(gate_up), cupy.empty_like(weights)
    arguments = u, gate_up, weights, choice, grad_gate_up, grad_weights, *u.shape
    launch("moe.swiglu_backward", (blocks(len(u), 4),), (128,), *arguments, dtype=u.dtype)
    return grad_gate_up, grad_weights


def _weighted_swiglu(saved):
    """(M, I): w silu(gate) up of every row."""
    gate_up, weights, choice = saved.gate_up, saved.weights, saved.choice
    h = cupy.empty((len(gate_up), gate_up.shape[1] // 2), gate_up.dtype)
    arguments = gate_up, weights, choice, h, *h.shape
    launch("moe.weighted_swiglu", (blocks(h.size, 256),), (256,), *arguments, dtype=h.dtype)
    return h


def whole(numbers):
    """Whole numbers as kernels read them."""
    return contiguous(numbers.astype(cupy.int64, copy=False))
