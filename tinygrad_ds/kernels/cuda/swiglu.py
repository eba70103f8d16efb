"""SwiGLU on the device: launches of swiglu.cu. sigma(gate) is computed again in backward, not saved."""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, launch


class SwigluSaved(NamedTuple):
    """Both halves of the product, where they lie."""

    gate: cupy.ndarray
    up: cupy.ndarray


def swiglu(gate, up):
    if gate.shape != up.shape or not gate.ndim or not covered(gate, up, narrow=True):
        return NotImplemented
    saved = SwigluSaved(_even(gate), _even(up))
    y = cupy.empty(gate.shape, gate.dtype)
    _launch("swiglu.forward", saved, gate, up_to=(saved.gate, saved.up, y))
    return y, saved


def swiglu_backward(saved, g):
    gate, up = saved
    grad_gate, grad_up = cupy.empty(gate.shape, gate.dtype), cupy.empty(up.shape, up.dtype)
    _launch("swiglu.backward", saved, gate, up_to=(contiguous(g), gate, up, grad_gate, grad_up))
    return grad_gate, grad_up


def _launch(kernel, saved, like, up_to):
    width, step = like.shape[-1], [_step(each) for each in saved]
    rows = like.size // width
    launch(kernel, (blocks(like.size, 256),), (256,), *up_to, rows, width, *step, dtype=like.dtype)


def _step(array):
    """Entries from a row of the last axis to the next."""
    return array.strides[-2] // array.itemsize if array.ndim > 1 else array.shape[-1]


def _even(array):
    """`array`, copied unless its rows are in one piece each and evenly spaced over all leading axes."""
    if array.strides[-1] != array.itemsize:
        return contiguous(array)
    spaced = array.strides[-2] if array.ndim > 1 else 0
    for size, stride in zip(array.shape[-2::-1], array.strides[-2::-1]):
        if stride != spaced:
            return contiguous(array)
        spaced *= size
    return array
