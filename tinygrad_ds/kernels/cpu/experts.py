"""Into the experts and out of them, fused: one expert at a time, all around its product while it is warm.

The rows of one expert are gathered into a buffer that is used again for the next, go through BLAS, and are
added to their tokens. So nothing of size (tokens K, d) is written or kept. A token has each expert once, so
that rows of one expert never meet; experts add in order, and results are the same each time.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.device import to_host
from tinygrad_ds.kernels.cpu.arithmetic import exp
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.ops.experts import token_of_row, weight_of_row
from tinygrad_ds.ops.moe import check_bounds, runs


class ExpertsInSaved(NamedTuple):
    """The tokens, and where their rows are."""

    x: np.ndarray  # (N, d)
    weight: np.ndarray  # (E, out, d)
    tokens: np.ndarray  # (M,)
    bounds: list[int]


def experts_in(x, weight, position, offsets):
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, position.size, len(weight))
    if not covered(x, weight):
        return NotImplemented
    saved = ExpertsInSaved(contiguous(x), contiguous(weight), token_of_row(np, position), bounds)
    rows = buffer(bounds, x.shape[1], x.dtype)
    y = np.empty((position.size, weight.shape[1]), x.dtype)
    for e, start, stop in runs(bounds):
        copies = gathered(saved.x, saved.tokens[start:stop], rows)
        np.matmul(copies, saved.weight[e].T, out=y[start:stop])
    return y, saved


def experts_in_backward_input(saved, g):
    x, weight, tokens, bounds = saved
    rows = buffer(bounds, x.shape[1], x.dtype)
    grad_x = np.zeros_like(x)
    for e, start, stop in runs(bounds):
        np.matmul(g[start:stop], weight[e], out=rows[: stop - start])
        add_rows(rows[: stop - start], tokens[start:stop], grad_x)
    return grad_x, None, None, None


def experts_in_backward_weight(saved, g):
    x, weight, tokens, bounds = saved
    rows = buffer(bounds, x.shape[1], x.dtype)
    grad_weight = np.empty_like(weight)
    for e, (start, stop) in enumerate(zip(bounds, bounds[1:])):  # no rows give zeros
        copies = gathered(x, tokens[start:stop], rows)
        np.matmul(g[start:stop].T, copies, out=grad_weight[e])
    return None, grad_weight, None, None


class ExpertsOutSaved(NamedTuple):
    """The product before the activation, and where the rows belong."""

    gate_up: np.ndarray  # (M, 2 I)
    of_row: np.ndarray  # (M,)  the weight of each row
    weight: np.ndarray  # (E, d, I)
    position: np.ndarray  # (N, K)
    tokens: np.ndarray  # (M,)
    bounds: list[int]


def experts_out(gate_up, weights, weight, position, offsets):
    if not covered(gate_up, weights, weight) or weights.shape != position.shape:
        return NotImplemented
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, len(gate_up), len(weight))
    if position.size != len(gate_up):
        return NotImplemented
    gate_up, weight, tokens = contiguous(gate_up), contiguous(weight), token_of_row(np, position)
    saved = ExpertsOutSaved(gate_up, weight_of_row(np, weights, position), weight, position, tokens, bounds)
    d, width = weight.shape[1:]
    h, rows = buffer(bounds, width, weight.dtype), buffer(bounds, d, weight.dtype)
    y = np.zeros((len(position), d), gate_up.dtype)
    for e, start, stop in runs(bounds):
        hidden, out = h[: stop - start], rows[: stop - start]
        weighted_swiglu(gate_up[start:stop], saved.of_row[start:stop], hidden)
        np.matmul(hidden, weight[e].T, out=out)
        add_rows(out, tokens[start:stop], y)
    return y, saved


def experts_out_backward(saved, g):
    """Both halves at once: the rows of g are gathered once."""
    return _experts_out_backward(saved, g, True, True)


def experts_out_backward_input(saved, g):
    return _experts_out_backward(saved, g, True, False)


def experts_out_backward_weight(saved, g):
    return _experts_out_backward(saved, g, False, True)


def _experts_out_backward(saved, g, of_input, of_weight):
    gate_up, of_row, weight, position, tokens, bounds = saved
    d, width = weight.shape[1:]
    rows, h = buffer(bounds, d, g.dtype), buffer(bounds, width, g.dtype)
    grads: Any = [np.empty_like(a) for a in (gate_up, of_row)] if of_input else [None, None]
    grad_gate_up, grad_of_row = grads
    grad_weight: Any = np.empty_like(weight) if of_weight else None
    g = contiguous(g)
    for e, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        run, hidden = slice(start, stop), h[: stop - start]
        copies = gathered(g, tokens[run], rows)
        if of_weight:  # also without rows: zeros
            weighted_swiglu(gate_up[run], of_row[run], hidden)
            np.matmul(copies.T, hidden, out=grad_weight[e])
        if of_input:
            np.matmul(copies, weight[e], out=hidden)
            swiglu_backward(hidden, gate_up[run], of_row[run], grad_gate_up[run], grad_of_row[run])
    return grad_gate_up, grad_of_row[position] if of_input else None, grad_weight, None, None


def buffer(bounds, width, dtype):
    """Room for the rows of the busiest expert."""
    return np.empty((max((stop - start for _, start, stop in runs(bounds)), default=0), width), dtype)


def gathered(x, tokens, rows):
    """Copies of the tokens' rows, in the buffer."""
    copies = rows[: len(tokens)]
    _gather(copies, tokens, x)
    return copies


@kernel("(T[:, ::1], int64[::1], T[:, ::1])")
def _gather(rows, tokens, x):
    for part in prange(PARTS):
        for r in range(share(part, len(rows)), share(part + 1, len(rows))):
            to, row = rows[r], x[tokens[r]]
            for i in range(len(row)):
                to[i] = row[i]


@kernel("(T[:, ::1], int64[::1], T[:, ::1])")
def add_rows(rows, tokens, total):
    for part in prange(PARTS):
        for r in range(share(part, len(rows)), share(part + 1, len(rows))):
            to, row = total[tokens[r]], rows[r]
            for i in range(len(row)):
                to[i] += row[i]


@kernel("(T[:, ::1], T[::1], T[:, ::1])")
def weighted_swiglu(gate_up, of_row, h):
    zero, one = h.dtype.type(0), h.dtype.type(1)
    width = h.shape[1]
    for part in prange(PARTS):
        for r in range(share(part, len(h)), share(part + 1, len(h))):
            gate, up, to, weight = gate_up[r, :width], gate_up[r, width:], h[r], of_row[r]
            for i in range(width):
                z = gate[i]
                e = exp(-abs(z))
                sigma = (one if z >= zero else e) / (one + e)
                to[i] = weight * z * sigma * up[i]


@kernel("(T[:, ::1], T[:, ::1], T[::1], T[:, ::1], T[::1])")
def swiglu_backward(u, gate_up, of_row, grad_gate_up, grad_of_row):
    zero, one = u.dtype.type(0), u.dtype.type(1)
    width = u.shape[1]
    for part in prange(PARTS):
        for r in range(share(part, len(u)), share(part + 1, len(u))):
            gate, up, from_above, weight = gate_up[r, :width], gate_up[r, width:], u[r], of_row[r]
            grad_gate, grad_up = grad_gate_up[r, :width], grad_gate_up[r, width:]
            along = zero
            for i in range(width):
                z = gate[i]
                e = exp(-abs(z))
                sigma = (one if z >= zero else e) / (one + e)
                h_without_up = z * sigma
                along += from_above[i] * h_without_up * up[i]
                g = weight * from_above[i]
                grad_gate[i] = g * up[i] * sigma * (one + z * (one - sigma))
                grad_up[i] = g * h_without_up
            grad_of_row[r] = along
