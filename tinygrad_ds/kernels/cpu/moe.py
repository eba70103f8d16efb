"""Rows to their experts and back, fused; between them BLAS, an expert to a thread, straight into the result.

Dispatch is a counting sort in two passes: every part counts what its tokens send to each expert, which says
where its rows of each expert begin, and then copies its rows there. A token's row is read once and written K
times. Combine reads the K rows of a token while its sum is in the cache. No array has shape (N, K, d).
"""

import numpy as np
from numba import prange

from tinygrad_ds.device import to_host
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.products import multiply_all
from tinygrad_ds.ops.moe import (
    CombineSaved,
    Dispatched,
    DispatchSaved,
    GroupedLinearSaved,
    check_bounds,
    runs,
)


def dispatch(x, indices, *, num_experts):
    if not covered(x) or len(x) != len(indices):
        return NotImplemented
    x, indices = contiguous(x), contiguous(indices.astype(np.int64, copy=False))
    counts = np.zeros((PARTS, num_experts + 1), np.int64)
    _count(indices, counts)
    if counts[:, -1].any():  # not an expert's number: the reference says so
        return NotImplemented
    offsets = np.zeros(num_experts + 1, np.int64)
    np.cumsum(counts[:, :-1].sum(axis=0), out=offsets[1:])
    starts = offsets[:-1] + counts[:, :-1].cumsum(axis=0) - counts[:, :-1]
    rows, position = np.empty((indices.size, x.shape[1]), x.dtype), np.empty_like(indices)
    _dispatch(x, indices, starts, rows, position)
    return Dispatched(rows, offsets, position), DispatchSaved(position)


def dispatch_backward(saved, g):
    g_rows = contiguous(g[0])
    grad_x = np.empty((len(saved.position), g_rows.shape[1]), g_rows.dtype)
    _dispatch_backward(g_rows, saved.position, grad_x)
    return grad_x, None


@kernel("(int64[:, ::1], int64[:, ::1])")
def _count(indices, counts):
    tokens, experts = len(indices), counts.shape[1] - 1
    for part in prange(PARTS):
        for n in range(share(part, tokens), share(part + 1, tokens)):
            for k in range(indices.shape[1]):
                e = indices[n, k]
                counts[part, e if 0 <= e < experts else experts] += 1


@kernel("(T[:, ::1], int64[:, ::1], int64[:, ::1], T[:, ::1], int64[:, ::1])")
def _dispatch(x, indices, starts, rows, position):
    for part in prange(PARTS):
        next_row = starts[part]
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            for k in range(indices.shape[1]):
                e = indices[n, k]
                r = next_row[e]
                next_row[e] += 1
                position[n, k] = r
                for i in range(x.shape[1]):
                    rows[r, i] = x[n, i]


@kernel("(T[:, ::1], int64[:, ::1], T[:, ::1])")
def _dispatch_backward(g_rows, position, grad_x):
    for part in prange(PARTS):
        for n in range(share(part, len(position)), share(part + 1, len(position))):
            grad = grad_x[n]
            grad[:] = g_rows.dtype.type(0)
            for k in range(position.shape[1]):
                g = g_rows[position[n, k]]
                for i in range(len(grad)):
                    grad[i] += g[i]


def grouped_linear(rows, weight, offsets):
    if not covered(rows, weight):
        return NotImplemented
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, len(rows), len(weight))
    y = np.empty((len(rows), weight.shape[1]), rows.dtype)
    multiply_all([(rows[i:j], weight[e].T, y[i:j]) for e, i, j in runs(bounds)])
    return y, GroupedLinearSaved(rows, weight, bounds)


def grouped_linear_backward_input(saved, g):
    rows, weight, bounds = saved
    grad_rows = np.empty(rows.shape, rows.dtype)
    multiply_all([(g[i:j], weight[e], grad_rows[i:j]) for e, i, j in runs(bounds)])
    return grad_rows, None, None


def grouped_linear_backward_weight(saved, g):
    rows, weight, bounds = saved
    grad_weight = np.empty(weight.shape, weight.dtype)
    spans = enumerate(zip(bounds, bounds[1:]))  # those without rows as well: their products are zeros
    multiply_all([(g[i:j].T, rows[i:j], grad_weight[e]) for e, (i, j) in spans])
    return None, grad_weight, None


def combine(rows, weights, position):
    if not covered(rows, weights) or weights.shape != position.shape or not _are_rows(position, rows):
        return NotImplemented
    rows, weights = contiguous(rows), contiguous(weights)
    position = contiguous(position.astype(np.int64, copy=False))
    y = np.empty((len(position), rows.shape[1]), rows.dtype)
    _combine(rows, weights, position, y)
    return y, CombineSaved(rows, weights, position)


def combine_backward(saved, g):
    rows, weights, position = saved
    everything_is_read = position.size == len(rows)
    grad_rows = np.empty_like(rows) if everything_is_read else np.zeros_like(rows)
    grad_weights = np.empty_like(weights)
    _combine_backward(contiguous(g), rows, weights, position, grad_rows, grad_weights)
    return grad_rows, grad_weights, None


def _are_rows(position, rows):
    return position.size == 0 or 0 <= position.min() <= position.max() < len(rows)


@kernel("(T[:, ::1], T[:, ::1], int64[:, ::1], T[:, ::1])")
def _combine(rows, weights, position, y):
    for part in prange(PARTS):
        for n in range(share(part, len(y)), share(part + 1, len(y))):
            total = y[n]
            total[:] = rows.dtype.type(0)
            for k in range(position.shape[1]):
                row, weight = rows[position[n, k]], weights[n, k]
                for i in range(len(total)):
                    total[i] += weight * row[i]


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1], int64[:, ::1], T[:, ::1], T[:, ::1])")
def _combine_backward(g, rows, weights, position, grad_rows, grad_weights):
    for part in prange(PARTS):
        for n in range(share(part, len(g)), share(part + 1, len(g))):
            for k in range(position.shape[1]):
                row, grad, weight = rows[position[n, k]], grad_rows[position[n, k]], weights[n, k]
                along = g.dtype.type(0)
                for i in range(len(row)):
                    grad[i] = weight * g[n, i]
                    along += g[n, i] * row[i]
                grad_weights[n, k] = along
