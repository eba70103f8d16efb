"""Rows to the experts and back on the device: launches of moe.cu."""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, launch
from tinygrad_ds.kernels.cuda.routing import expert_order
from tinygrad_ds.ops.moe import Dispatched


def choice_of_row(position):
    """(M,): which choice n K + k each row is for; position (N, K) must be a permutation of the rows."""
    choice = cupy.empty(position.size, cupy.int64)
    arguments = position, choice, position.size
    launch("moe.invert", (blocks(position.size, 256),), (256,), *arguments, dtype="float32")
    return choice


def copies_of(x, choice, chosen):
    """(M, d): the token's row of x (N, d) for every row of an expert."""
    rows = cupy.empty((len(choice), x.shape[1]), x.dtype)
    arguments = x, choice, rows, *rows.shape, chosen
    launch("moe.copy_tokens", (blocks(rows.size, 256),), (256,), *arguments, dtype=x.dtype)
    return rows


def add_copies(rows, weights, position):
    """y_n = sum_k w[n, k] rows[position[n, k]]; weights None count as ones."""
    (tokens, chosen), (count, d) = position.shape, rows.shape
    y = cupy.empty((tokens, d), rows.dtype)
    arguments = rows, weights, position, y, tokens, d, chosen, count
    launch("moe.add_copies", (blocks(y.size, 256),), (256,), *arguments, dtype=rows.dtype)
    return y


class DispatchSaved(NamedTuple):
    """Where each token's copies went."""

    position: cupy.ndarray  # (N, K)


def dispatch(x, indices, *, num_experts):
    if not covered(x) or x.ndim != 2 or len(x) != len(indices) or not indices.size:
        return NotImplemented
    offsets, position = expert_order(indices, num_experts=num_experts)
    rows = copies_of(contiguous(x), choice_of_row(position), position.shape[1])
    return Dispatched(rows, offsets, position), DispatchSaved(position)


def dispatch_backward(saved, g):
    return add_copies(contiguous(g[0]), None, saved.position), None


class CombineSaved(NamedTuple):
    """What the backward reads."""

    rows: cupy.ndarray  # (M, d)
    weights: cupy.ndarray  # (N, K)
    position: cupy.ndarray  # (N, K)


def combine(rows, weights, position):
    if not covered(rows, weights) or weights.shape != position.shape:
        return NotImplemented
    position = contiguous(position.astype(cupy.int64, copy=False))
    saved = CombineSaved(contiguous(rows), contiguous(weights), position)
    return add_copies(*saved), saved


def combine_backward(saved, g):
    rows, weights, position = saved
    grad_rows, grad_weights = cupy.zeros_like(rows), cupy.empty_like(weights)
    sizes = position.size, rows.shape[1], position.shape[1], len(rows)
    arguments = contiguous(g), rows, weights, position, grad_rows, grad_weights, *sizes
    launch("moe.combine_backward", (blocks(position.size, 4),), (128,), *arguments, dtype=rows.dtype)
    return grad_rows, grad_weights, None
