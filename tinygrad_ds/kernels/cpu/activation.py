"""Softmax, log_softmax and swiglu, fused.

The two softmaxes read a row three times, after the first time from the cache: its largest entry, the sum of
the exponentials, the result. They know the last axis only. swiglu reads each entry once; it saves no sigma
but computes the exponential again in backward, which costs less than reading it would.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import PARTS, as_rows, contiguous, covered, kernel, share


def softmax(x, *, axis=-1):
    return _along_rows(_softmax, x, axis)


def softmax_backward(saved, g):
    return _backward_along_rows(_softmax_backward, saved, g)


def log_softmax(x, *, axis=-1):
    return _along_rows(_log_softmax, x, axis)


def log_softmax_backward(saved, g):
    return _backward_along_rows(_log_softmax_backward, saved, g)


def _along_rows(function, x, axis):
    if not covered(x) or axis not in (-1, x.ndim - 1) or not x.size:
        return NotImplemented
    y = np.empty(x.shape, x.dtype)
    function(as_rows(x), as_rows(y))
    return y, (y,)


def _backward_along_rows(function, saved, g):
    grad_x = np.empty(g.shape, g.dtype)
    function(as_rows(g), as_rows(saved[0]), as_rows(grad_x))
    return (grad_x,)


@kernel("(T[:, ::1], T[:, ::1])")
def _softmax(x, y):
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for part in prange(PARTS):
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            top = largest(x[n])
            total = zero
            for i in range(x.shape[1]):
                e = exp(x[n, i] - top)
                y[n, i] = e
                total += e
            scale = one / total
            for i in range(x.shape[1]):
                y[n, i] *= scale


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1])")
def _softmax_backward(g, y, grad_x):
    zero = g.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(g)), share(part + 1, len(g))):
            mean = zero
            for i in range(g.shape[1]):
                mean += g[n, i] * y[n, i]
            for i in range(g.shape[1]):
                grad_x[n, i] = y[n, i] * (g[n, i] - mean)


@kernel("(T[:, ::1], T[:, ::1])")
def _log_softmax(x, y):
    zero = x.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(x)), share(part + 1, len(x))):
            top = largest(x[n])
            total = zero
            for i in range(x.shape[1]):
                total += exp(x[n, i] - top)
            log_total = np.log(total)
            for i in range(x.shape[1]):
                y[n, i] = x[n, i] - top - log_total


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1])")
def _log_softmax_backward(g, y, grad_x):
    zero = g.dtype.type(0)
    for part in prange(PARTS):
        for n in range(share(part, len(g)), share(part + 1, len(g))):
            total = zero
            for i in range(g.shape[1]):
                total += g[n, i]
            for i in range(g.shape[1]):
                grad_x[n, i] = g[n, i] - exp(y[n, i]) * total


class SwigluSaved(NamedTuple):
    """Both halves of the product."""

    gate: np.ndarray
    up: np.ndarray


def swiglu(gate, up):
    if not covered(gate, up) or gate.shape != up.shape:
        return NotImplemented
    saved = SwigluSaved(contiguous(gate), contiguous(up))
    y = np.empty(gate.shape, gate.dtype)
    _swiglu(saved.gate.reshape(-1), saved.up.reshape(-1), y.reshape(-1))
    return y, saved


def swiglu_backward(saved, g):
    gate, up = saved
    grad_gate, grad_up = np.empty(g.shape, g.dtype), np.empty(g.shape, g.dtype)
    flat = (contiguous(g), gate, up, grad_gate, grad_up)
    _swiglu_backward(*(array.reshape(-1) for array in flat))
    return grad_gate, grad_up


@kernel("(T[::1], T[::1], T[::1])")
def _swiglu(gate, up, y):
    zero, one = gate.dtype.type(0), gate.dtype.type(1)
    for part in prange(PARTS):
        start, stop = share(part, gate.size), share(part + 1, gate.size)
        gate_p, up_p, y_p = gate[start:stop], up[start:stop], y[start:stop]
        for i in range(stop - start):
            z = gate_p[i]
            e = exp(-abs(z))
            sigma = (one if z >= zero else e) / (one + e)
            y_p[i] = z * sigma * up_p[i]


@kernel("(T[::1], T[::1], T[::1], T[::1], T[::1])")
def _swiglu_backward(g, gate, up, grad_gate, grad_up):
    zero, one = g.dtype.type(0), g.dtype.type(1)
    for part in prange(PARTS):
        start, stop = share(part, g.size), share(part + 1, g.size)
        g_p, gate_p, up_p = g[start:stop], gate[start:stop], up[start:stop]
        grad_gate_p, grad_up_p = grad_gate[start:stop], grad_up[start:stop]
        for i in range(stop - start):
            z = gate_p[i]
            e = exp(-abs(z))
            sigma = (one if z >= zero else e) / (one + e)
            grad_gate_p[i] = g_p[i] * up_p[i] * sigma * (one + z * (one - sigma))
            grad_up_p[i] = g_p[i] * z * sigma
