"""Grouped products on the device: launches of grouped.cu, which reads the experts' bounds where they lie."""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, launch

TILE = 64


def rows_times_matrix(x, weight, offsets, choice=None, chosen=1, *, transposed=False):
    """y_r = W_e x_r for every row, or W_e^T x_r where transposed; weight (E, out, in) contiguous.

    choice (M,): row r is x[choice_r // chosen], so x has a row for each token.
    """
    rows = len(x) if choice is None else len(choice)
    experts, out, inner = weight.shape
    if transposed:
        out, inner = inner, out
    y = cupy.empty((rows, out), x.dtype)
    sizes = inner, out, experts, rows, chosen, int(transposed)
    grid = blocks(out, TILE), blocks(rows, TILE) + experts
    arguments = x, weight, offsets, choice, y, *sizes
    launch("grouped.rows_times_matrix", grid, (16, 16), *arguments, dtype=x.dtype)
    return y


def matrix_gradient(g, x, offsets, shape, choice=None, chosen=1, *, g_by_token=False, x_by_token=False):
    """dL/dW (E, out, in) of `shape`: for each expert the sum of g_r x_r^T over its rows."""
    grad, (experts, out, inner) = cupy.empty(shape, g.dtype), shape
    sizes = inner, out, chosen, int(g_by_token), int(x_by_token)
    grid = blocks(inner, TILE), blocks(out, TILE), experts
    arguments = g, x, offsets, choice, grad, *sizes
    launch("grouped.matrix_gradient", grid, (16, 16), *arguments, dtype=g.dtype)
    return grad


class GroupedLinearSaved(NamedTuple):
    """What the two halves of the backward read."""

    rows: cupy.ndarray  # (M, in)
    weight: cupy.ndarray  # (E, out, in)
    offsets: cupy.ndarray  # (E + 1,)


def grouped_linear(rows, weight, offsets):
    if not covered(rows, weight) or len(offsets) != len(weight) + 1:
        return NotImplemented
    offsets = contiguous(offsets.astype(cupy.int64, copy=False))
    saved = GroupedLinearSaved(contiguous(rows), contiguous(weight), offsets)
    return rows_times_matrix(*saved), saved


def grouped_linear_backward_input(saved, g):
    _, weight, offsets = saved
    return rows_times_matrix(contiguous(g), weight, offsets, transposed=True), None, None


def grouped_linear_backward_weight(saved, g):
    rows, weight, offsets = saved
    return None, matrix_gradient(contiguous(g), rows, offsets, weight.shape), None
