"""Cases for ops/norm.py."""

from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, composition, reals, shapes, strategy


@strategy("rmsnorm")
@st.composite
def rmsnorm_cases(draw):
    """Any number of rows, none included, of one entry and more.

    Where eps is small and a row short, the gradient is next to nothing and differences cannot see it.
    """
    rows, d = draw(shapes(max_dims=2)), draw(st.integers(1, 9))
    eps = draw(st.sampled_from([1e-6, 1e-2, 1.0] if d > 4 else [0.1, 1.0]))
    return Case((draw(reals((*rows, d))), draw(reals((d,)))), {"eps": eps})


@composition("rmsnorm")
def rmsnorm_composed(x, weight, *, eps):
    return x * tg.rsqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
