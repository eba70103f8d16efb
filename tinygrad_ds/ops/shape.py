"""Primitives that move entries about. Each y is a copy of one x: backward brings every g back to its x.

`split`, `reshape`, `transpose` and the like give views where NumPy does.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from tinygrad_ds.device import namespace
from tinygrad_ds.ops.broadcast import Form, fit, form, sum_to
from tinygrad_ds.primitive import primitive


class ShapeSaved(NamedTuple):
    """The shape of x."""

    shape: tuple[int, ...]


@primitive
def reshape(x, *, shape):
    """The same entries in the same order in another shape; one size may be -1."""
    return x.reshape(shape), ShapeSaved(x.shape)


@reshape.backward
def reshape_backward(saved, g):
    """The entries keep their order, so g is put into the shape of x."""
    return (g.reshape(saved.shape),)


@primitive
def squeeze(x, *, axis=None):
    """x without axes of size 1: all of them, or those that `axis` names."""
    return x.squeeze(axis=axis), ShapeSaved(x.shape)


@squeeze.backward
def squeeze_backward(saved, g):
    """The entries keep their order, so g is put into the shape of x."""
    return (g.reshape(saved.shape),)


@primitive
def expand_dims(x, *, axis):
    """x with new axes of size 1 where `axis`, an int or several, names them in the result."""
    return namespace(x).expand_dims(x, axis), ShapeSaved(x.shape)


@expand_dims.backward
def expand_dims_backward(saved, g):
    """The entries keep their order, so g is put into the shape of x."""
    return (g.reshape(saved.shape),)


class TransposeSaved(NamedTuple):
    """The permutation that leads back."""

    inverse: tuple[int, ...]


@primitive
def transpose(x, *, axes=None):
    """Axis i of y is axis axes[i] of x; without axes, in reverse order."""
    order = range(x.ndim)[::-1] if axes is None else [normalize_axis_index(axis, x.ndim) for axis in axes]
    inverse = tuple(sorted(range(len(order)), key=order.__getitem__))
    return x.transpose(order), TransposeSaved(inverse)


@transpose.backward
def transpose_backward(saved, g):
    """Axis axes[i] of x is axis i of g: the inverse permutation."""
    return (g.transpose(saved.inverse),)


@primitive
def broadcast_to(x, *, shape):
    """x repeated along new axes in front and along axes of size 1; a read-only view."""
    return namespace(x).broadcast_to(x, shape), ShapeSaved(x.shape)


@broadcast_to.backward
def broadcast_to_backward(saved, g):
    """Every copy of x_i carries its own g, and x_i gets their sum."""
    return (sum_to(g, saved.shape),)


class JoinSaved(NamedTuple):
    """What the gradients must look like, and the axis along which the arrays lie."""

    forms: tuple[Form, ...]
    axis: int


@primitive
def concatenate(*arrays, axis=0):
    """The arrays one after another along `axis`, which must exist; elsewhere their sizes are equal."""
    y = namespace(arrays[0]).concatenate(arrays, axis=axis)
    return y, JoinSaved(tuple(map(form, arrays)), normalize_axis_index(axis, y.ndim))


@concatenate.backward
def concatenate_backward(saved, g):
    """Each array gets the stretch of g that lies where it lies in y."""
    grads, start = [], 0
    for like in saved.forms:
        stop = start + like.shape[saved.axis]
        grads.append(fit(g[(slice(None),) * saved.axis + (slice(start, stop),)], like))
        start = stop
    return tuple(grads)


@primitive
def stack(*arrays, axis=0):
    """Arrays of one shape along a new axis; `axis` is its place in the result."""
    y = namespace(arrays[0]).stack(arrays, axis=axis)
    return y, JoinSaved(tuple(map(form, arrays)), normalize_axis_index(axis, y.ndim))


@stack.backward
def stack_backward(saved, g):
    """Array i is y[i] along the new axis, and gets g[i]."""
    layers = namespace(g).moveaxis(g, saved.axis, 0)
    return tuple(fit(layers[i], like) for i, like in enumerate(saved.forms))


class SplitSaved(NamedTuple):
    """What the gradient must look like, and where each part was cut out."""

    x: Form
    cuts: tuple[tuple[slice, ...], ...]


@primitive
def split(x, *, sections, axis=0):
    """x cut along `axis` into a tuple of views, as numpy.split does.

    sections: the number of equal parts, or the list of points to cut at.
    """
    axis = normalize_axis_index(axis, x.ndim)
    size = x.shape[axis]
    if isinstance(sections, int):
        if sections < 1 or size % sections:
            raise ValueError(
                f"{size} entries along axis {axis} cannot be split into {sections} equal parts: "
                "give a divisor, or a list of cut points"
            )
        sections = range(size // sections, size, size // sections) if size else [0] * (sections - 1)
    points = [0, *sections, size]
    cuts = tuple((slice(None),) * axis + (slice(a, b),) for a, b in zip(points, points[1:]))
    return tuple(x[cut] for cut in cuts), SplitSaved(form(x), cuts)


@split.backward
def split_backward(saved, g):
    """The parts of g in the places of the parts of x, with zeros for a part that has no gradient.

    They are added, for cut points out of order may give an x to two parts.
    """
    xp = namespace(next(part for part in g if part is not None))
    grad = xp.zeros(saved.x.shape, dtype=saved.x.dtype)
    for cut, part in zip(saved.cuts, g, strict=True):
        if part is not None:
            grad[cut] += part
    return (grad,)


class PadSaved(NamedTuple):
    """Where x lies in y."""

    inner: tuple[slice, ...]


@primitive
def pad(x, *, pad_width, value=0.0):
    """x with `value` around it. pad_width: one number, (before, after), or such a pair for every axis."""
    xp = namespace(x)
    pairs = np.broadcast_to(pad_width, (x.ndim, 2)).tolist()
    inner = tuple(slice(before, before + size) for (before, _), size in zip(pairs, x.shape))
    shape = tuple(before + size + after for (before, after), size in zip(pairs, x.shape))
    y = xp.full(shape, value, dtype=x.dtype)
    y[inner] = x
    return y, PadSaved(inner)


@pad.backward
def pad_backward(saved, g):
    """x is the inner part of y; what surrounds it is constant."""
    return (g[saved.inner],)
