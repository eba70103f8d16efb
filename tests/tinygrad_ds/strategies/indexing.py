"""Cases for ops/indexing.py."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, basic_indices, integer_array_indices

from tests.tinygrad_ds.harness import Case, reals, shapes, strategy
from tests.tinygrad_ds.strategies.shape import any_axis, either_end


def integers(draw, low, high, shape):
    """An int64 array with entries in low..high; repeats are likely."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(low, high + 1, shape)


@st.composite
def mixed_indices(draw, shape):
    """Slices, numbers, integer arrays, lists and masks side by side, with None and `...` between them.

    All arrays have k entries or one, and all masks pick k, so that they broadcast.
    """
    k = draw(st.integers(0, 3))
    parts = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        kinds = ["slice"]
        kinds += ["number", "array", "list"] if size else []
        kinds += ["mask"] if k <= size else []
        kind = draw(st.sampled_from(kinds))
        if kind == "slice":
            parts.append(draw(st.slices(size)))
        elif kind == "number":
            parts.append(draw(st.integers(-size, size - 1)))
        elif kind == "mask":
            parts.append(np.isin(np.arange(size), draw(st.permutations(range(size)))[:k]))
        else:
            array = integers(draw, -size, size - 1, draw(st.sampled_from(((k,), (1,), (2, 1)))))
            parts.append(array.tolist() if kind == "list" else array)
    if len(parts) < len(shape) and draw(st.booleans()):
        parts.append(...)
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return tuple(parts)


@strategy("getitem")
@st.composite
def getitem_cases(draw):
    """Every kind of index, also where it picks nothing."""
    shape = draw(shapes())
    kinds = [
        basic_indices(shape, allow_newaxis=True),
        arrays(bool, shape),
        mixed_indices(shape),
    ]
    if shape and 0 not in shape:
        kinds.append(
            integer_array_indices(shape, result_shape=array_shapes(min_side=0, max_dims=2, max_side=4))
        )
        kinds.append(arrays(np.int64, shapes(max_dims=2), elements=st.integers(-shape[0], shape[0] - 1)))
    return Case((draw(reals(shape)),), {"index": draw(st.one_of(kinds))})


@strategy("embedding")
@st.composite
def embedding_cases(draw):
    """A few rows, read often, or not at all."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    ids = integers(draw, 0, rows - 1, draw(shapes(max_dims=2)))
    return Case((draw(reals((rows, width))), ids))


def places_along(draw, shape, axis):
    """Indices along `axis` of an array, repeated and from either end, some other axes of size 1."""
    size = shape[axis]
    sizes = [draw(st.sampled_from((1, other, other))) for other in shape]
    sizes[axis] = draw(st.integers(0, 3)) if size else 0
    return integers(draw, -size, max(size - 1, 0), sizes)


@strategy("take_along_axis")
@st.composite
def take_along_axis_cases(draw):
    """Axes from either end; indices and x broadcast against each other."""
    shape = draw(shapes(min_dims=1))
    place = draw(st.integers(0, len(shape) - 1))
    indices = places_along(draw, shape, place)
    x_shape = tuple(draw(st.sampled_from((1, n, n))) if i != place else n for i, n in enumerate(shape))
    return Case((draw(reals(x_shape)), indices), {"axis": either_end(draw, place, len(shape))})


@strategy("scatter_add")
@st.composite
def scatter_add_cases(draw):
    """Updates of the size of what they are added to, repeats included."""
    shape = draw(shapes(min_dims=1))
    axis = any_axis(draw, len(shape))
    indices = places_along(draw, shape, axis)
    added_to = list(shape)
    added_to[axis] = indices.shape[axis]
    return Case((draw(reals(shape)), indices, draw(reals(tuple(added_to)))), {"axis": axis})
