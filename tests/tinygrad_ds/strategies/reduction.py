"""Cases for ops/reduction.py."""

import math

import numpy as np
from hypothesis import strategies as st

from tests.tinygrad_ds.harness import Case, reals, shapes, strategy


@st.composite
def axes_of(draw, ndim):
    """All axes, one, or some of them in any order, counted from either end; `()` reduces nothing."""
    if ndim == 0:
        return draw(st.sampled_from((None, ())))
    chosen = draw(st.permutations(range(ndim)))[: draw(st.integers(0, ndim))]
    signed = tuple(axis - ndim if draw(st.booleans()) else axis for axis in chosen)
    return draw(st.sampled_from((None, signed, signed[0] if signed else -1)))


def reduced_sizes(shape, axis):
    """The sizes of the axes that `axis` names."""
    if axis is None:
        return shape
    return tuple(shape[i] for i in ((axis,) if isinstance(axis, int) else axis))


def reductions(nothing_reduced=False, **ranges):
    """Cases of one array, axes and keepdims; reduced axes are empty only if that is allowed."""

    @st.composite
    def cases(draw):
        shape = draw(shapes())
        axis = draw(axes_of(len(shape)))
        if not nothing_reduced and 0 in reduced_sizes(shape, axis):
            shape = tuple(max(size, 1) for size in shape)
        return Case((draw(reals(shape, **ranges)),), {"axis": axis, "keepdims": draw(st.booleans())})

    return cases


sum_cases = strategy("sum")(reductions(nothing_reduced=True))
mean_cases = strategy("mean")(reductions())
max_cases = strategy("max")(reductions(distinct=True))
min_cases = strategy("min")(reductions(distinct=True))


@strategy("var")
@st.composite
def var_cases(draw):
    """Both divisors, n and n - 1, the latter where there are two entries."""
    case = draw(reductions()())
    n = math.prod(reduced_sizes(case.arrays[0].shape, case.options["axis"]))
    return Case(case.arrays, {**case.options, "ddof": draw(st.integers(0, min(1, n - 1)))})


@strategy("logsumexp")
@st.composite
def logsumexp_cases(draw):
    """Shifts that would overflow e^x, and entries of -inf, though not in every place."""
    case = draw(reductions(nothing_reduced=True)())
    x = case.arrays[0] + draw(st.sampled_from((0.0, -1000.0, 1000.0)))
    sizes = reduced_sizes(x.shape, case.options["axis"])
    if x.size and draw(st.booleans()) and math.prod(sizes) == x.size > 1:
        x.flat[draw(st.integers(0, x.size - 1))] = -np.inf
    return Case((x,), case.options)


@strategy("cumsum")
@st.composite
def cumsum_cases(draw):
    """Any axis, counted from either end."""
    shape = draw(shapes(min_dims=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return Case((draw(reals(shape)),), {"axis": axis})
