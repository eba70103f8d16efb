"""Softmax and log_softmax along the last axis on the device: launches of activation.cu."""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import as_rows, blocks, covered, launch


class SoftmaxSaved(NamedTuple):
    """The result is all that both slopes need."""

    y: cupy.ndarray  # (rows, d)


def softmax(x, *, axis=-1):
    return _forward(x, axis, 0)


def softmax_backward(saved, g):
    return (_backward(saved, g, 0),)


def log_softmax(x, *, axis=-1):
    return _forward(x, axis, 1)


def log_softmax_backward(saved, g):
    return (_backward(saved, g, 1),)


def _forward(x, axis, logarithm):
    if not covered(x, narrow=True) or axis not in (-1, x.ndim - 1):
        return NotImplemented
    rows = as_rows(x)
    y = cupy.empty_like(rows)
    grid = (blocks(len(rows), 4),)
    launch("activation.forward", grid, (128,), rows, y, *rows.shape, logarithm, dtype=x.dtype)
    return y.reshape(x.shape), SoftmaxSaved(y)


def _backward(saved, g, logarithm):
    y, grad = saved.y, cupy.empty_like(saved.y)
    arguments = as_rows(g), y, grad, *y.shape, logarithm
    launch("activation.backward", (blocks(len(y), 4),), (128,), *arguments, dtype=y.dtype)
    return grad.reshape(g.shape)
