"""Cases for ops/elementwise.py."""

from hypothesis import strategies as st

from tests.tinygrad_ds.harness import Case, broadcast_pair, reals, strategy


def _two_arrays(**ranges):
    @st.composite
    def cases(draw):
        first, second = draw(broadcast_pair())
        return Case((draw(reals(first, **ranges)), draw(reals(second, **ranges))))

    return cases


add_cases = strategy("add")(_two_arrays())
multiply_cases = strategy("multiply")(_two_arrays())
