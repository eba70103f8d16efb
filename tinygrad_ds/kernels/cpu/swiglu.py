"""swiglu, fused: y = gate sigma(gate) up, each entry read once.

gate and up are often the halves of one merged product, [gate | up] in every row: they are read where they
lie, and their gradients are written as halves of one array in turn. No sigma is saved: computing the
exponential once more costs less than reading it would.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import exp
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share_of_entries
from tinygrad_ds.kernels.cpu.layout import ONE_ROW, contiguous, row_start, spread


class SwigluSaved(NamedTuple):
    """Both halves of the product, wherever they lie."""

    gate: np.ndarray
    up: np.ndarray


def swiglu(gate, up):
    if not covered(gate, up) or gate.shape != up.shape or not 1 <= gate.ndim <= 4:
        return NotImplemented
    y = np.empty(gate.shape, gate.dtype)
    _swiglu(y.reshape(-1), *_read(gate, up))
    return y, SwigluSaved(gate, up)


def swiglu_backward(saved, g):
    gate, up = saved
    width = gate.shape[-1]
    if _merged(gate, up):
        whole = np.empty((*g.shape[:-1], 2 * width), g.dtype)
        grads, step = (whole[..., :width], whole[..., width:]), 2 * width
        memory = whole.reshape(-1), whole.reshape(-1)[width:]
    else:
        grads, step = (np.empty(g.shape, g.dtype), np.empty(g.shape, g.dtype)), width
        memory = grads[0].reshape(-1), grads[1].reshape(-1)
    _swiglu_backward(contiguous(g).reshape(-1), *_read(gate, up), *memory, step)
    return grads


def _merged(gate, up):
    """Whether both have rows with gaps, as halves of wider rows have."""
    return not gate.flags.c_contiguous and not up.flags.c_contiguous


def _read(gate, up):
    """Where both lie, and the width of their rows; without gaps all is one row."""
    if _merged(gate, up):
        return *spread(gate), *spread(up), gate.shape[-1]
    return contiguous(gate).reshape(-1), ONE_ROW, contiguous(up).reshape(-1), ONE_ROW, gate.size


@kernel("(T[::1], T[::1], int64[::1], T[::1], int64[::1], int64)")
def _swiglu(y, gate, gate_layout, up, up_layout, width):
    zero, one = y.dtype.type(0), y.dtype.type(1)
    for part in prange(PARTS):
        first, stop = share_of_entries(part, y.size), share_of_entries(part + 1, y.size)
        while first < stop:  # a part may begin and end within a row
            n, j = first // width, first % width
            count = min(width - j, stop - first)
            z_at, up_at = row_start(n, gate_layout) + j, row_start(n, up_layout) + j
            z_p, up_p, y_p = gate[z_at : z_at + count], up[up_at : up_at + count], y[first : first + count]
            for i in range(count):
                z = z_p[i]
                e = exp(-abs(z))
                sigma = (one if z >= zero else e) / (one + e)
                y_p[i] = z * sigma * up_p[i]
            first += count


@kernel("(T[::1], T[::1], int64[::1], T[::1], int64[::1], int64, T[::1], T[::1], int64)")
def _swiglu_backward(g, gate, gate_layout, up, up_layout, width, grad_gate, grad_up, step):
    zero, one = g.dtype.type(0), g.dtype.type(1)
    for part in prange(PARTS):
        first, stop = share_of_entries(part, g.size), share_of_entries(part + 1, g.size)
        while first < stop:
            n, j = first // width, first % width
            count = min(width - j, stop - first)
            z_at, up_at = row_start(n, gate_layout) + j, row_start(n, up_layout) + j
            to = n * step + j
            z_p, up_p, g_p = gate[z_at : z_at + count], up[up_at : up_at + count], g[first : first + count]
            grad_gate_p, grad_up_p = grad_gate[to : to + count], grad_up[to : to + count]
            for i in range(count):
                z = z_p[i]
                e = exp(-abs(z))
                sigma = (one if z >= zero else e) / (one + e)
                grad_gate_p[i] = g_p[i] * up_p[i] * sigma * (one + z * (one - sigma))
                grad_up_p[i] = g_p[i] * z * sigma
            first += count
