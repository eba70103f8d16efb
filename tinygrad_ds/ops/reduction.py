"""Reductions over any axes, and the running sum.

All of them map many x to one y, so every backward starts by spreading g over the axes that are gone.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.primitive import primitive


class ReducedSaved(NamedTuple):
    """The shape of x, and the axes that were summed over."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]


@primitive
def sum(x, *, axis=None, keepdims=False):
    """y = sum_i x_i over `axis`: an int, several, or None for all. The sum of nothing is 0."""
    axes = _axes(x, axis)
    return x.sum(axis=axes, keepdims=keepdims), ReducedSaved(x.shape, axes)


@sum.backward
def sum_backward(saved, g):
    """dy/dx_i = 1: each x_i gets g."""
    shape, axes = saved
    return (namespace(g).broadcast_to(_spread(g, shape, axes), shape),)


@primitive
def mean(x, *, axis=None, keepdims=False):
    """y = 1/n sum_i x_i over `axis`. The mean of nothing is NaN, as in NumPy."""
    axes = _axes(x, axis)
    return x.mean(axis=axes, keepdims=keepdims), ReducedSaved(x.shape, axes)


@mean.backward
def mean_backward(saved, g):
    """dy/dx_i = 1/n: each x_i gets g / n."""
    shape, axes = saved
    share = g / (_count(shape, axes) or 1)  # an empty mean has nobody to share with
    return (namespace(g).broadcast_to(_spread(share, shape, axes), shape),)


class ExtremeSaved(NamedTuple):
    """x, and its largest or smallest entries, the axes kept."""

    x: Array
    extreme: Array
    axes: tuple[int, ...]


@primitive
def max(x, *, axis=None, keepdims=False):
    """y = max_i x_i over `axis`, NaN if one is NaN. ValueError over an empty axis."""
    axes = _axes(x, axis)
    _need_entries(x, axes, "max")
    extreme = x.max(axis=axes, keepdims=True)
    return _drop(extreme, axes, keepdims), ExtremeSaved(x, extreme, axes)


@max.backward
def max_backward(saved, g):
    """dy/dx_i = 1 for the x_i that is y, 0 for the others. k entries that tie get g / k each.

    So the gradient sums to g in any case, and a permutation of x permutes it.
    """
    return (_shared_among_ties(saved, g),)


@primitive
def min(x, *, axis=None, keepdims=False):
    """y = min_i x_i over `axis`, NaN if one is NaN. ValueError over an empty axis."""
    axes = _axes(x, axis)
    _need_entries(x, axes, "min")
    extreme = x.min(axis=axes, keepdims=True)
    return _drop(extreme, axes, keepdims), ExtremeSaved(x, extreme, axes)


@min.backward
def min_backward(saved, g):
    """dy/dx_i = 1 for the x_i that is y, 0 for the others. k entries that tie get g / k each.

    So the gradient sums to g in any case, and a permutation of x permutes it.
    """
    return (_shared_among_ties(saved, g),)


def _shared_among_ties(saved: ExtremeSaved, g: Array) -> Array:
    x, extreme, axes = saved
    ties = (x == extreme) | (x != x)  # a NaN is an extreme that equals nothing
    return ties * (_spread(g, x.shape, axes) / ties.sum(axis=axes, keepdims=True, dtype=g.dtype))


class VarSaved(NamedTuple):
    """Distances from the mean, and what their squares were divided by."""

    d: Array
    divisor: int
    axes: tuple[int, ...]


@primitive
def var(x, *, axis=None, ddof=0, keepdims=False):
    """y = sum_i d_i^2 / (n - ddof), d_i = x_i - mean(x), over `axis`. NaN where n <= ddof, as in NumPy."""
    axes = _axes(x, axis)
    d = x - x.mean(axis=axes, keepdims=True)
    divisor = _count(x.shape, axes) - ddof
    y = (d * d).sum(axis=axes, keepdims=keepdims)
    return y / divisor if divisor > 0 else y * np.nan, VarSaved(d, divisor, axes)


@var.backward
def var_backward(saved, g):
    """With m = mean(x), dm/dx_j = 1/n and dd_i/dx_j = [i = j] - 1/n:

    dy/dx_j = 2 / (n - ddof) sum_i d_i ([i = j] - 1/n)
            = 2 d_j / (n - ddof),   since sum_i d_i = 0.

    The gradient sums to 0, for adding the same to every x_i changes nothing.
    """
    d, divisor, axes = saved
    return (2 * d * _spread(g / divisor if divisor > 0 else g * np.nan, d.shape, axes),)


class LogsumexpSaved(NamedTuple):
    """The derivative itself, softmax(x)."""

    p: Array
    axes: tuple[int, ...]


@primitive
def logsumexp(x, *, axis=None, keepdims=False):
    """y = ln sum_i e^x_i over `axis`: m + ln sum_i e^(x_i - m) with m = max(x), so that nothing overflows.

    Entries of -inf add nothing; if all are -inf, or there are none, y = -inf. One +inf makes y = +inf.
    """
    xp, axes = namespace(x), _axes(x, axis)
    empty = _count(x.shape, axes) == 0
    m = xp.full(_kept(x.shape, axes), -np.inf, x.dtype) if empty else x.max(axis=axes, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf, which the mask drops, and ln 0
        e = xp.exp(xp.where(x == m, 0, x - m))
        total = e.sum(axis=axes, keepdims=True)
        y = xp.log(total) + m
    p = e / total * (m > -np.inf)
    return _drop(y, axes, keepdims), LogsumexpSaved(p, axes)


@logsumexp.backward
def logsumexp_backward(saved, g):
    """With s = sum_i e^x_i:   dy/dx_i = 1/s ds/dx_i = e^x_i / s = softmax(x)_i.

    The gradient sums to g. At infinity we take: several +inf share g equally, an entry of -inf gets 0, and so
    do all entries where all are -inf.
    """
    p, axes = saved
    return (p * _spread(g, p.shape, axes),)


class CumsumSaved(NamedTuple):
    """The axis along which the sum runs."""

    axis: int


@primitive
def cumsum(x, *, axis):
    """y_i = x_0 + .. + x_i along `axis`."""
    axis = normalize_axis_index(axis, x.ndim)
    return x.cumsum(axis=axis), CumsumSaved(axis)


@cumsum.backward
def cumsum_backward(saved, g):
    """x_i is a term of y_i, .. y_n, so dL/dx_i = g_i + .. + g_n: the running sum from the other end."""
    xp = namespace(g)
    return (xp.flip(xp.flip(g, saved.axis).cumsum(axis=saved.axis), saved.axis),)


def _axes(x: Array, axis: Any) -> tuple[int, ...]:
    """The axes that `axis` names, counted from the front; None names all."""
    return tuple(range(x.ndim)) if axis is None else normalize_axis_tuple(axis, x.ndim)


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the result with keepdims."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """n, how many x make one y."""
    return math.prod(shape[axis] for axis in axes)


def _spread(g: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """g with the reduced axes back as axes of size 1, so that it broadcasts against x."""
    return g.reshape(_kept(shape, axes))


def _drop(y: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """y without the reduced axes, unless they are to be kept."""
    return y if keepdims else y.squeeze(axis=axes)


def _need_entries(x: Array, axes: tuple[int, ...], name: str) -> None:
    if x.size == 0 and _count(x.shape, axes) == 0:
        raise ValueError(
            f"{name} over axes {axes} of shape {x.shape}: an empty axis has no {name}, so make it 1 or longer"
        )
