"""Cases for ops/elementwise.py."""

import numpy as np
from hypothesis import strategies as st

from tests.tinygrad_ds.harness import Case, broadcast_pair, reals, shapes, strategy


def one_array(**ranges):
    """Cases of one array with entries in a range."""

    @st.composite
    def cases(draw):
        return Case((draw(reals(draw(shapes()), **ranges)),))

    return cases


def two_arrays(**ranges):
    """Cases of two arrays that broadcast."""

    @st.composite
    def cases(draw):
        first, second = draw(broadcast_pair())
        return Case((draw(reals(first, **ranges)), draw(reals(second, **ranges))))

    return cases


add_cases = strategy("add")(two_arrays())
subtract_cases = strategy("subtract")(two_arrays())
multiply_cases = strategy("multiply")(two_arrays())
negative_cases = strategy("negative")(one_array())
exp_cases = strategy("exp")(one_array())
log_cases = strategy("log")(one_array(low=0.3, high=3.0))
sqrt_cases = strategy("sqrt")(one_array(low=0.3, high=3.0))
rsqrt_cases = strategy("rsqrt")(one_array(low=0.3, high=3.0))
tanh_cases = strategy("tanh")(one_array())
abs_cases = strategy("abs")(one_array(kinks=(0.0,)))


@strategy("divide")
@st.composite
def divide_cases(draw):
    """Divisors of both signs, away from 0."""
    first, second = draw(broadcast_pair())
    signs = np.sign(draw(reals(second, kinks=(0.0,))))
    return Case((draw(reals(first)), signs * draw(reals(second, low=0.4))))


@strategy("power")
@st.composite
def power_cases(draw):
    """Positive bases with any exponent; any base, 0 too, with whole exponents, which have no gradient."""
    first, second = draw(broadcast_pair())
    if draw(st.booleans()):
        return Case((draw(reals(first, low=0.4)), draw(reals(second))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    negative_exponents = draw(st.booleans())
    base = draw(reals(first, low=0.4)) * rng.choice([-1.0, 1.0], first)
    if not negative_exponents:
        base = base * rng.integers(0, 3, first).astype(bool)
    return Case((base, rng.integers(-2 if negative_exponents else 0, 4, second).astype(np.int8)))


def two_distinct_arrays():
    """Cases of two arrays that broadcast and have no entry in common."""

    @st.composite
    def cases(draw):
        first, second = draw(broadcast_pair())
        cut = int(np.prod(first))
        values = draw(reals((cut + int(np.prod(second)),), distinct=True))
        return Case((values[:cut].reshape(first), values[cut:].reshape(second)))

    return cases


maximum_cases = strategy("maximum")(two_distinct_arrays())
minimum_cases = strategy("minimum")(two_distinct_arrays())


def part_of(draw, shape):
    """A shape that broadcasts to `shape`: axes left out in front, others of size 1."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(draw(st.sampled_from((1, size, size))) for size in kept)


@strategy("where")
@st.composite
def where_cases(draw):
    """Mask and both arrays, each of them broadcast."""
    shape = draw(shapes())
    mask = draw(reals(part_of(draw, shape))) > 0
    return Case((mask, draw(reals(part_of(draw, shape))), draw(reals(part_of(draw, shape)))))


@strategy("clip")
@st.composite
def clip_cases(draw):
    """Numbers, arrays or nothing as bounds."""
    shape = draw(shapes())
    low = draw(st.sampled_from((None, -0.5, np.float64(-0.5))))
    high = draw(st.sampled_from((None, 0.75, np.full(part_of(draw, shape), 0.75, dtype=np.float16))))
    return Case((draw(reals(shape, kinks=(-0.5, 0.75))),), {"low": low, "high": high})


@strategy("astype")
@st.composite
def astype_cases(draw):
    """To float64 only: rounding to fewer digits has no slope that differences could find."""
    return Case((draw(reals(draw(shapes()))),), {"dtype": "float64"})
