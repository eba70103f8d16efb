"""Products of matrices: matmul, linear, einsum. Reference forms; the products themselves are BLAS everywhere.

Each has its backward in two halves, because the gradient of an input is wanted at once by the layers below
and that of a weight by the optimizer alone, any time (see `tinygrad_ds.defer_weight_gradients`).
"""

import string
from math import prod
from typing import NamedTuple

import numpy as np

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.dtypes import result_type
from tinygrad_ds.ops.broadcast import fit, sum_to
from tinygrad_ds.primitive import primitive


class MatmulSaved(NamedTuple):
    """What both halves of the derivative of matmul need."""

    a: Array  # (..., n, k) or (k,)
    b: Array  # (..., k, m) or (k,)


@primitive(weights=(1,))
def matmul(a, b):
    """Y = A B for matrices in the last two axes; the axes in front broadcast.

    a (..., n, k), b (..., k, m) -> y (..., n, m). As in NumPy, a of shape (k,) is taken as a row and b of
    shape (k,) as a column, and the axis of size 1 is dropped from y again. ValueError where the k of both
    differ.
    """
    return _in_dtype_of((a, b), namespace(a).matmul(a, b)), MatmulSaved(a, b)


@matmul.backward_input
def matmul_backward_input(saved, g):
    """From G = dL/dY to dL/dA.

    Y_ij = sum_k A_ik B_kj, so A_ik reaches the loss through row i of Y:
        dL/dA_ik = sum_j G_ij B_kj,   that is   dL/dA = G B^T,
    summed over the axes along which A was broadcast.
    """
    a, b, g = _as_matrices(saved.a, saved.b, g)
    grad_a = namespace(g).matmul(g, b.swapaxes(-1, -2))
    return fit(sum_to(grad_a, a.shape).reshape(saved.a.shape), saved.a), None


@matmul.backward_weight
def matmul_backward_weight(saved, g):
    """From G = dL/dY to dL/dB.

    B_kj reaches the loss through column j of Y:   dL/dB_kj = sum_i A_ik G_ij,   that is   dL/dB = A^T G,
    summed over the axes along which B was broadcast.
    """
    a, b, g = _as_matrices(saved.a, saved.b, g)
    if b.ndim == 2:  # one B for every A: the sum over the batch is part of the product
        a, g = _rows(a), _rows(g)
    grad_b = namespace(g).matmul(a.swapaxes(-1, -2), g)
    return None, fit(sum_to(grad_b, b.shape).reshape(saved.b.shape), saved.b)


def _as_matrices(a: Array, b: Array, g: Array) -> tuple[Array, Array, Array]:
    """A vector a as a row, a vector b as a column, and g with the axes that the product then dropped."""
    if b.ndim == 1:
        b, g = b[:, None], g[..., None]
    if a.ndim == 1:
        a, g = a[None, :], g[..., None, :]
    return a, b, g


def _in_dtype_of(arrays: tuple[Array, ...], y: Array) -> Array:
    """y in the dtype of its operands: NumPy multiplies matrices of bfloat16 into float32."""
    return y.astype(result_type(list(arrays), []), copy=False)


def _rows(array: Array) -> Array:
    """All vectors of the last axis as the rows of one matrix: (..., d) -> (rows, d)."""
    return array.reshape(prod(array.shape[:-1]), array.shape[-1])


class LinearSaved(NamedTuple):
    """What both halves of the derivative of linear need."""

    x: Array  # (..., in)
    weight: Array  # (out, in)
    bias: Array | None  # (out,)


@primitive(weights=(1, 2))
def linear(x, weight, bias=None):
    """y = x W^T + b, a product with a weight stored as in checkpoints.

    x (..., in), weight (out, in), bias (out,) or none -> y (..., out). ValueError where `in` differs.
    """
    check_inputs(x, weight)
    y = (_rows(x) @ weight.T).reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None:
        y = y + bias
    return _in_dtype_of((x, weight), y), LinearSaved(x, weight, bias)


@linear.backward_input
def linear_backward_input(saved, g):
    """From g = dL/dy to dL/dx.

    y_o = sum_i W_oi x_i + b_o, so   dL/dx_i = sum_o g_o W_oi,   that is   dL/dx = g W.
    """
    x, weight, bias = saved
    grad_x = fit((_rows(g) @ weight).reshape(x.shape), x)
    return (grad_x, None) if bias is None else (grad_x, None, None)


@linear.backward_weight
def linear_backward_weight(saved, g):
    """From g = dL/dy to dL/dW and dL/db, both summed over all rows n of x.

    dL/dW_oi = sum_n g_no x_ni,   that is   dL/dW = g^T x;      dL/db_o = sum_n g_no.
    """
    x, weight, bias = saved
    grad_weight = fit(_rows(g).T @ _rows(x), weight)
    return (None, grad_weight) if bias is None else (None, grad_weight, fit(g, bias))


def check_inputs(x: Array, weight: Array) -> None:
    """ValueError unless a vector of x's last axis is what the weight (out, in) takes."""
    if x.ndim == 0 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"linear: x has shape {x.shape} but the weight {weight.shape} takes {weight.shape[-1]} numbers"
        )


class EinsumSaved(NamedTuple):
    """What both halves of the derivative of einsum need."""

    arrays: tuple[Array, ...]
    terms: tuple[str, ...]  # the labels of every operand, with `...` spelt out
    result: str  # the labels of the result


@primitive(weights=(-1,))
def einsum(*arrays, subscripts):
    """Einstein's sum: the operands' product, summed over all labels that the result does not name.

    "bik,bjk->bij" multiplies batches of matrices. A label may repeat within an operand ("ii": the diagonal)
    or stand in one operand alone ("ij->i": a sum); `...` stands for axes that broadcast; without "->" the
    result has the axes of `...`, then the labels that occur once, sorted. ValueError where labels and axes
    do not match.
    """
    terms, result = _spell_out(subscripts, arrays)
    y = _in_dtype_of(arrays, _contract(terms, result, arrays))
    return y, EinsumSaved(arrays, terms, result)


@einsum.backward_input
def einsum_backward_input(saved, g):
    """From g = dL/dy to the gradient of every operand but the last: see `_gradient_of`."""
    last = len(saved.arrays) - 1
    return (*(_gradient_of(position, saved, g) for position in range(last)), None)


@einsum.backward_weight
def einsum_backward_weight(saved, g):
    """From g = dL/dy to that of the last operand, the weight where there is one: see `_gradient_of`."""
    last = len(saved.arrays) - 1
    return (*(None for _ in range(last)), _gradient_of(last, saved, g))


def _gradient_of(position: int, saved: EinsumSaved, g: Array) -> Array:
    """dL/dx for operand x. With R the labels of the result, X those of x and O those of the other operands:

        y[R] = sum over all labels not in R of x[X] * others[O], so
        dL/dx[X] = sum over all labels not in X of g[R] * others[O]:

    an einsum again, with g in the place of x. Three things remain.
    A label of x that is neither in R nor in O was summed out of x alone: all entries along it get the same.
    An axis of x of size 1 that was stretched against the others gets the sum over the copies.
    A label that x has twice read only the diagonal of x: off the diagonal the gradient is 0.
    """
    xp = namespace(g)
    x, term = saved.arrays[position], saved.terms[position]
    others = [*saved.arrays[:position], *saved.arrays[position + 1 :]]
    other_terms = [*saved.terms[:position], *saved.terms[position + 1 :]]
    labels = "".join(dict.fromkeys(term))
    sizes = tuple(x.shape[term.index(label)] for label in labels)
    reached = [label in saved.result or any(label in other for other in other_terms) for label in labels]

    kept = "".join(label for label, there in zip(labels, reached) if there)
    grad = _contract([saved.result, *other_terms], kept, [g, *others])
    at_hand = iter(grad.shape)
    grad = grad.reshape([next(at_hand) if there else 1 for there in reached])
    grad = sum_to(xp.broadcast_to(grad, np.broadcast_shapes(grad.shape, sizes)), sizes)
    if labels == term:
        return fit(grad, x)
    diagonal = dict(zip(labels, xp.ix_(*(xp.arange(size) for size in sizes))))
    grad_x = xp.zeros(x.shape, dtype=grad.dtype)
    grad_x[tuple(diagonal[label] for label in term)] = grad
    return fit(grad_x, x)


def _contract(terms: list[str] | tuple[str, ...], result: str, arrays: list | tuple) -> Array:
    """The sum itself. `optimize` lets NumPy choose the order of the operands and use BLAS for pairs."""
    return namespace(arrays[0]).einsum(f"{','.join(terms)}->{result}", *arrays, optimize=True)


def _spell_out(subscripts: str, arrays: tuple[Array, ...]) -> tuple[tuple[str, ...], str]:
    """The labels of every operand and of the result, with `...` replaced by labels of its own."""
    inputs, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(arrays):
        raise ValueError(f"einsum {subscripts!r} names {len(terms)} operands but got {len(arrays)}")
    dots = []
    for term, array in zip(terms, arrays):
        hidden = array.ndim - len(term.replace("...", ""))
        if hidden < 0 or (hidden and "..." not in term):
            raise ValueError(f"einsum {subscripts!r}: {term!r} does not name the axes of shape {array.shape}")
        dots.append(hidden)
    unused = "".join(label for label in string.ascii_letters if label not in subscripts)
    ellipsis = unused[: max(dots)]
    if not arrow:
        once = sorted(label for label in set(inputs) if label.isalpha() and inputs.count(label) == 1)
        result = f"...{''.join(once)}"
    elif ellipsis and "..." not in result:
        raise ValueError(f"einsum {subscripts!r}: the result must have the axes of '...' too")
    spelt = [term.replace("...", ellipsis[len(ellipsis) - hidden :]) for term, hidden in zip(terms, dots)]
    return tuple(spelt), result.replace("...", ellipsis)
