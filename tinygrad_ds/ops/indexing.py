"""Indexing. y holds copies of entries of x: backward adds every g to the place that it was read from.

Where a place was read several times, all its g are added, in an order that depends on the index alone.
"""

from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.primitive import primitive


class GetitemSaved(NamedTuple):
    """What the gradient must look like, and the index."""

    x: Form
    where: Any


@primitive
def getitem(x, *, index):
    """y = x[index] for any index of NumPy; a view for slices and numbers, a copy for arrays and masks."""
    return x[index], GetitemSaved(form(x), index)


@getitem.backward
def getitem_backward(saved, g):
    """With y_j = x_i(j):   dL/dx_i = sum of g_j over all j with i(j) = i; 0 where there is none."""
    x, where = saved
    return (_put(x, where, g),)


class EmbeddingSaved(NamedTuple):
    """What the gradient must look like, and the rows that were read."""

    weight: Form
    ids: Array


@primitive
def embedding(weight, ids):
    """y[..., :] = weight[ids[...], :]. weight (V, d), ids (...) whole numbers in 0..V-1 -> y (..., d)."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids are {ids.dtype} but must be whole numbers: use ids.astype('int64')")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(weight):
        raise IndexError(
            f"ids reach from {int(ids.min())} to {int(ids.max())} but weight has {len(weight)} rows: "
            f"ids must be in 0..{len(weight) - 1}"
        )
    return weight[ids], EmbeddingSaved(form(weight), ids)


@embedding.backward
def embedding_backward(saved, g):
    """Row v was read by every position j with ids_j = v:   dL/dweight_v = sum of g_j over those j."""
    weight, ids = saved
    return _add_rows(weight, ids, g), None


class TakeAlongAxisSaved(NamedTuple):
    """What the gradient must look like, and for each axis of x the positions that were read."""

    x: Form
    where: tuple[Array, ...]


@primitive
def take_along_axis(x, indices, *, axis):
    """y[.., j, ..] = x[.., indices[.., j, ..], ..] along `axis`; the other axes broadcast."""
    index = _along(x, indices, axis)
    return x[index], TakeAlongAxisSaved(form(x), index)


@take_along_axis.backward
def take_along_axis_backward(saved, g):
    """Every g_j is added to the place that y_j was read from; the indices get nothing."""
    x, where = saved
    return _put(x, where, g), None


class ScatterAddSaved(NamedTuple):
    """For each axis the positions that were added to, and what the gradient of the updates must look like."""

    where: tuple[Array, ...]
    updates: Form


@primitive
def scatter_add(x, indices, updates, *, axis):
    """A copy y of x with y[.., indices[.., j, ..], ..] += updates[.., j, ..] along `axis`, repeats too."""
    index = _along(x, indices, axis)
    y = x.copy()
    namespace(x).add.at(y, index, updates.astype(x.dtype, copy=False))
    return y, ScatterAddSaved(index, form(updates))


@scatter_add.backward
def scatter_add_backward(saved, g):
    """dy/dx = 1, so x gets g. updates_j is a term of the y that it was added to, and gets its g."""
    return g, None, fit(g[saved.where], saved.updates)


def _along(x: Array, indices: Array, axis: int) -> tuple[Array, ...]:
    """An index for every axis of x that together reads `indices` along `axis`, all else in place."""
    if indices.ndim != x.ndim:
        raise ValueError(
            f"indices have {indices.ndim} axes but x has {x.ndim}: give them as many, of size 1 to broadcast"
        )
    axis = normalize_axis_index(axis, x.ndim)
    index = list(namespace(x).ix_(*(namespace(x).arange(size) for size in x.shape)))
    index[axis] = indices
    return tuple(index)


def _put(x: Form, index: Any, g: Array) -> Array:
    """Zeros in the form of x, with g added at `index`."""
    xp = namespace(g)
    grad = xp.zeros(x.shape, dtype=x.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or isinstance(part, slice | int | np.integer | EllipsisType) for part in parts):
        grad[index] = g  # slices and numbers read no place twice
    elif len(parts) == 1 and _is_array(parts[0], "b"):
        grad[parts[0]] = g  # nor does a mask
    elif len(parts) == 1 and _is_array(parts[0], "iu"):
        return _add_rows(x, parts[0], g)
    else:
        xp.add.at(grad, index, g)
    return grad


def _is_array(part: Any, kinds: str) -> bool:
    return hasattr(part, "dtype") and part.dtype.kind in kinds


def _add_rows(x: Form, ids: Array, g: Array) -> Array:
    """Zeros in the form of x, with g[j] added to row ids[j]. Faster than add.at, which goes entry by entry.

    Sorting brings the g of one row together; `stable` keeps them in order, so that their sum has the same
    bits each time. It is taken in float64, because CuPy's reduceat subtracts running sums over all rows.
    """
    xp = namespace(g)
    grad = xp.zeros(x.shape, dtype=x.dtype)
    if ids.size == 0:
        return grad
    ids, g = ids.reshape(-1) % x.shape[0], g.reshape(ids.size, *x.shape[1:])
    order = xp.argsort(ids, kind="stable")
    ids = ids[order]
    starts = xp.flatnonzero(xp.concatenate([xp.ones(1, dtype=bool), ids[1:] != ids[:-1]]))
    grad[ids[starts]] = xp.add.reduceat(g[order], starts, axis=0, dtype=np.float64)
    return grad
