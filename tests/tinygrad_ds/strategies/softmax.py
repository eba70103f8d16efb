"""Cases for the coarse primitives in ops/activation.py."""

from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, broadcast_pair, composition, reals, shapes, strategy


@st.composite
def one_axis(draw):
    """An array of any shape but 0-d, and one of its axes, along which no entry is nearly all of the sum.

    Of two entries the gradients are as g_0 - g_1, which may be next to nothing: float32 could not show it.
    """
    shape = draw(shapes(min_dims=1, max_side=5).map(lambda sides: tuple(6 if n == 2 else n for n in sides)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return Case((draw(reals(shape, low=-1.5, high=1.5)),), {"axis": axis})


strategy("softmax")(one_axis)
strategy("log_softmax")(one_axis)


@composition("softmax")
def softmax_composed(x, *, axis):
    e = tg.exp(x)
    return e / e.sum(axis=axis, keepdims=True)


@composition("log_softmax")
def log_softmax_composed(x, *, axis):
    return x - tg.logsumexp(x, axis=axis, keepdims=True)


@strategy("swiglu")
@st.composite
def swiglu_cases(draw):
    """Of one shape, or of two that broadcast."""
    shape = draw(shapes(max_side=5))
    gate, up = draw(st.just((shape, shape)) | broadcast_pair())
    return Case((draw(reals(gate, low=-6.0, high=6.0)), draw(reals(up))))


@composition("swiglu")
def swiglu_composed(gate, up):
    return gate / (1 + tg.exp(-gate)) * up
