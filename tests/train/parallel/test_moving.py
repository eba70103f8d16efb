import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.parallel.moving import Rows, by_base, parcels, piece, rows_in


@st.composite
def cuts(draw):
    """A number of rows, and two ways to share them out among ranks: all have all, or each some."""
    rows, ranks = draw(st.integers(1, 9)), draw(st.integers(1, 4))

    def share():
        if draw(st.booleans()):
            return [[Rows("m.a", 0, rows)] for _ in range(ranks)]
        ends = sorted(draw(st.lists(st.integers(0, rows), min_size=ranks - 1, max_size=ranks - 1)))
        spans = zip([0, *ends], [*ends, rows])
        return [[Rows("m.a", start, stop)] if start < stop else [] for start, stop in spans]

    return share(), share()


@given(cuts())
def test_every_wanted_row_comes_once_from_one_who_has_it(problem):
    has, wants = problem
    got: list[list[int]] = [[] for _ in has]
    for rows, source, destination in parcels(has, wants):
        assert any(r.start <= rows.start < rows.stop <= r.stop for r in has[source])
        got[destination] += range(rows.start, rows.stop)
        own = {row for r in has[destination] for row in range(r.start, r.stop)}
        assert source == destination or not own & {rows.start}, "what a rank has comes from nobody else"
    assert got == [[row for r in each for row in range(r.start, r.stop)] for each in wants]


def test_rows_that_nobody_has_are_named():
    with pytest.raises(ValueError, match="no rank has row 3 of m.a, which rank 1 needs"):
        list(parcels([[Rows("m.a", 0, 3)], []], [[], [Rows("m.a", 2, 5)]]))


def test_pieces_are_views_and_what_has_no_rows_is_whole():
    arrays = {"m.a[2:5]": np.zeros((3, 2)), "steps": np.array(7)}
    assert [rows_in(key) for key in arrays] == [Rows("m.a", 2, 5), Rows("steps", 0, 1)]
    piece(by_base(arrays), Rows("m.a", 3, 5))[...] = 1
    assert arrays["m.a[2:5]"].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert piece(by_base(arrays), Rows("steps", 0, 1)) is arrays["steps"]
    with pytest.raises(KeyError):
        piece(by_base(arrays), Rows("m.a", 1, 3))
