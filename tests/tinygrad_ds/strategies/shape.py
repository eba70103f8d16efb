"""Cases for ops/shape.py."""

from hypothesis import strategies as st

from tests.tinygrad_ds.harness import Case, reals, shapes, strategy
from tests.tinygrad_ds.strategies.elementwise import part_of


def either_end(draw, axis, ndim):
    """The same axis, counted from the front or from the back."""
    return axis - ndim if draw(st.booleans()) else axis


def any_axis(draw, ndim):
    """One of ndim axes, counted from either end."""
    return either_end(draw, draw(st.integers(0, ndim - 1)), ndim)


@strategy("reshape")
@st.composite
def reshape_cases(draw):
    """Sizes exchanged, put together, of 1 or left open as -1; one size alone as an int."""
    shape = draw(shapes())
    sizes = list(draw(st.permutations(shape)))
    if len(sizes) > 1 and draw(st.booleans()):
        sizes[:2] = [sizes[0] * sizes[1]]
    sizes[draw(st.integers(0, len(sizes))) : 0] = [1] * draw(st.integers(0, 1))
    if sizes and 0 not in sizes and draw(st.booleans()):
        sizes[draw(st.integers(0, len(sizes) - 1))] = -1
    wanted = sizes[0] if len(sizes) == 1 and draw(st.booleans()) else tuple(sizes)
    return Case((draw(reals(shape)),), {"shape": wanted})


@strategy("transpose")
@st.composite
def transpose_cases(draw):
    """Any permutation, its axes counted from either end."""
    shape = draw(shapes())
    order = draw(st.permutations(range(len(shape))))
    axes = draw(st.sampled_from((None, tuple(either_end(draw, axis, len(shape)) for axis in order))))
    return Case((draw(reals(shape)),), {"axes": axes})


@strategy("broadcast_to")
@st.composite
def broadcast_to_cases(draw):
    """New axes in front, stretched ones, and stretched to nothing."""
    shape = draw(shapes())
    return Case((draw(reals(part_of(draw, shape))),), {"shape": shape})


@strategy("concatenate")
@st.composite
def concatenate_cases(draw):
    """One to three arrays that differ in size along the axis, empty ones among them."""
    shape = draw(shapes(min_dims=1))
    place = draw(st.integers(0, len(shape) - 1))
    arrays = []
    for size in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)):
        arrays.append(draw(reals((*shape[:place], size, *shape[place + 1 :]))))
    return Case(tuple(arrays), {"axis": either_end(draw, place, len(shape))})


@strategy("stack")
@st.composite
def stack_cases(draw):
    """One to three arrays, numbers (0-d) among them."""
    shape = draw(shapes())
    arrays = [draw(reals(shape)) for _ in range(draw(st.integers(1, 3)))]
    return Case(tuple(arrays), {"axis": any_axis(draw, len(shape) + 1)})


@strategy("split")
@st.composite
def split_cases(draw):
    """Equal parts, or cut points: in order, repeated, past the end, and out of order."""
    shape = draw(shapes(min_dims=1))
    axis = any_axis(draw, len(shape))
    size = shape[axis]
    divisors = [n for n in (1, 2, 3, 4) if size % n == 0]
    points = st.lists(st.integers(0, size + 1), max_size=3)
    sections = draw(st.sampled_from(divisors) | points.map(sorted) | points)
    return Case((draw(reals(shape)),), {"sections": sections, "axis": axis})


@strategy("pad")
@st.composite
def pad_cases(draw):
    """One width for all, one pair for all, or a pair for every axis."""
    shape = draw(shapes(min_dims=1))
    width = st.integers(0, 2)
    pair = st.tuples(width, width)
    pad_width = draw(width | pair | st.tuples(*[pair] * len(shape)))
    return Case((draw(reals(shape)),), {"pad_width": pad_width, "value": draw(st.sampled_from((0.0, -1.5)))})


@strategy("squeeze")
@st.composite
def squeeze_cases(draw):
    """All axes of size 1, one of them, or several."""
    shape = draw(st.lists(st.sampled_from((1, 1, 0, 2)), max_size=4).map(tuple))
    ones = [either_end(draw, axis, len(shape)) for axis, size in enumerate(shape) if size == 1]
    choices = [None, tuple(ones), *ones]
    return Case((draw(reals(shape)),), {"axis": draw(st.sampled_from(choices))})


@strategy("expand_dims")
@st.composite
def expand_dims_cases(draw):
    """One new axis or two."""
    shape = draw(shapes())
    one = any_axis(draw, len(shape) + 1)
    two = draw(st.permutations(range(len(shape) + 2)))[:2]
    axis = draw(st.sampled_from((one, tuple(either_end(draw, place, len(shape) + 2) for place in two))))
    return Case((draw(reals(shape)),), {"axis": axis})
