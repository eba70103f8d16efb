"""Into the experts and out of them, fused: all around a product while it is warm, on the thread that does it.

The rows of one expert are gathered into a buffer that is used again for the next, go through BLAS, and are
added to their tokens. So nothing of size (tokens K, d) is written or kept. Where rows are added up, a task is
a chunk of tokens on their way through all experts: two threads never meet at a token, and experts add in
order. Elsewhere it is one expert, or a piece of its rows.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.device import to_host
from tinygrad_ds.kernels.cpu.arithmetic import exp
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.products import ROWS, take_turns
from tinygrad_ds.ops.experts import token_of_row, weight_of_row
from tinygrad_ds.ops.moe import check_bounds, runs

Run = tuple[int, int, int]  # an expert, and its rows from start to stop

CHUNK_ROWS = 128  # that a chunk of tokens should have for an expert; BLAS is nearly as fast as on more


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
    x, weight, tokens, _ = saved
    y = np.empty((position.size, weight.shape[1]), x.dtype)
    pieces = [
        (e, i, min(i + ROWS, stop)) for e, start, stop in runs(bounds) for i in range(start, stop, ROWS)
    ]

    def worker():
        rows = buffer(pieces, x.shape[1], x.dtype)

        def multiply(piece):
            e, start, stop = piece
            copies = rows[: stop - start]
            gather.alone(copies, tokens[start:stop], x)
            np.matmul(copies, weight[e].T, out=y[start:stop])

        return multiply

    take_turns(pieces, worker, y.size * x.shape[1])
    return y, saved


def experts_in_backward_input(saved, g):
    x, weight, tokens, bounds = saved
    chunks = _chunks(bounds, tokens, len(x))
    grad_x, g = np.zeros_like(x), contiguous(g)

    def worker():
        rows = buffer(sum(chunks, []), x.shape[1], x.dtype)

        def visit(chunk):
            for e, start, stop in chunk:
                grad_rows = rows[: stop - start]
                np.matmul(g[start:stop], weight[e], out=grad_rows)
                add_rows.alone(grad_rows, tokens[start:stop], grad_x)

        return visit

    take_turns(chunks, worker, g.size * x.shape[1])
    return grad_x, None, None, None


def experts_in_backward_weight(saved, g):
    x, weight, tokens, bounds = saved
    grad_weight = np.empty_like(weight)
    experts = _longest_first(bounds)

    def worker():
        rows = buffer(experts, x.shape[1], x.dtype)

        def multiply(expert):
            e, start, stop = expert
            copies = rows[: stop - start]
            gather.alone(copies, tokens[start:stop], x)
            np.matmul(g[start:stop].T, copies, out=grad_weight[e])

        return multiply

    take_turns(experts, worker, g.size * x.shape[1])
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
    of_row = weight_of_row(np, weights, position)
    saved = ExpertsOutSaved(gate_up, of_row, weight, position, tokens, bounds)
    d, width = weight.shape[1:]
    y = np.zeros((len(position), d), gate_up.dtype)
    chunks = _chunks(bounds, tokens, len(y))

    def worker():
        h, rows = (buffer(sum(chunks, []), size, y.dtype) for size in (width, d))

        def visit(chunk):
            for e, start, stop in chunk:
                hidden, out = h[: stop - start], rows[: stop - start]
                weighted_swiglu.alone(gate_up[start:stop], of_row[start:stop], hidden)
                np.matmul(hidden, weight[e].T, out=out)
                add_rows.alone(out, tokens[start:stop], y)

        return visit

    take_turns(chunks, worker, len(gate_up) * width * d)
    return y, saved


def experts_out_backward(saved, g):
    """Both halves at once: the rows of g are gathered once, and one pass gives h and both its gradients."""
    return _experts_out_backward(saved, g, True, True)


def experts_out_backward_input(saved, g):
    return _experts_out_backward(saved, g, True, False)


def experts_out_backward_weight(saved, g):
    return _experts_out_backward(saved, g, False, True)


def _experts_out_backward(saved, g, of_input, of_weight):
    gate_up, of_row, weight, position, tokens, bounds = saved
    d, width = weight.shape[1:]
    grads: Any = [np.empty_like(a) for a in (gate_up, of_row)] if of_input else [None, None]
    grad_gate_up, grad_of_row = grads
    grad_weight: Any = np.empty_like(weight) if of_weight else None
    g, experts = contiguous(g), _longest_first(bounds)

    def worker():
        rows, h, unwanted = (buffer(experts, size, g.dtype) for size in (d, width, 2 * width))

        def visit(expert):
            e, start, stop = expert
            run, copies, hidden = slice(start, stop), rows[: stop - start], h[: stop - start]
            gather.alone(copies, tokens[run], g)
            if of_input:
                np.matmul(copies, weight[e], out=hidden)
                grads = grad_gate_up[run], grad_of_row[run]
            else:  # h alone is wanted, with the bits that it has when all is
                grads = unwanted, np.empty_like(of_row[run])
            swiglu_backward.alone(hidden, gate_up[run], of_row[run], *grads)
            if of_weight:
                np.matmul(copies.T, hidden, out=grad_weight[e])

        return visit

    take_turns(experts, worker, len(gate_up) * width * d)
    return grad_gate_up, grad_of_row[position] if of_input else None, grad_weight, None, None


def _chunks(bounds: list[int], tokens: np.ndarray, count: int) -> list[list[Run]]:
    """The runs of each chunk of tokens, in the order of experts.

    An expert's rows are in the order of its tokens, as `expert_order` has them; if not, all are one chunk.
    """
    rises = tokens[1:] > tokens[:-1]
    rises[[start - 1 for _, start, _ in runs(bounds) if start]] = True
    if not rises.all():
        return [list(runs(bounds))]
    wanted = len(tokens) // (max(len(bounds) - 1, 1) * CHUNK_ROWS)
    chunks = max(2, min(PARTS, wanted))
    cuts = [count * chunk // chunks for chunk in range(1, chunks)]
    parts: list[list[Run]] = [[] for _ in range(chunks)]
    for e, start, stop in runs(bounds):
        inner = (start + np.searchsorted(tokens[start:stop], cuts)).tolist()
        for part, (i, j) in zip(parts, pairwise([start, *inner, stop])):
            if i < j:
                part.append((e, i, j))
    return parts


def _longest_first(bounds: list[int]) -> list[Run]:
    """All experts, also those without rows."""
    return sorted(((e, i, j) for e, (i, j) in enumerate(pairwise(bounds))), key=lambda run: run[1] - run[2])


def buffer(some: Iterable[Run], width: int, dtype: np.dtype) -> np.ndarray:
    """Room for the rows of the longest of some runs."""
    return np.empty((max((stop - start for _, start, stop in some), default=0), width), dtype)


def gathered(x: np.ndarray, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies of the tokens' rows, in the buffer."""
    copies = rows[: len(tokens)]
    gather(copies, tokens, x)
    return copies


@kernel("(T[:, ::1], int64[::1], T[:, ::1])")
def gather(rows, tokens, x):
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
    """u comes as the gradient of the rows h that `weighted_swiglu` makes, and goes as h."""
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
                from_above[i] = weight * h_without_up * up[i]
            grad_of_row[r] = along
