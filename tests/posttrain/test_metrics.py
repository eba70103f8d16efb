import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import cons_at_k, pass_at_k
from posttrain.metrics import figure


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 2), (5, 1, 3), (6, 3, 4), (3, 0, 2), (3, 3, 1), (8, 8, 8)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n, c, k):
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased():
    """Of n = 6 answers, right with p = .3 each, its mean is 1 - (1 - p)^k; the naive one's is not."""
    p, n, k = 0.3, 6, 4
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance))
    naive = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance))
    assert mean == pytest.approx(1 - (1 - p) ** k) and abs(naive - mean) > 0.01


@pytest.mark.parametrize(
    ("n", "c", "k", "words"), [(4, 2, 5, "k is 5 but n is 4"), (4, 5, 1, "c is 5"), (4, 1, 0, "k is 0")]
)
def test_fewer_answers_than_k_are_an_error(n, c, k, words):
    with pytest.raises(ValueError, match=words):
        pass_at_k(n, c, k)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=8), st.randoms())
def test_consensus_does_not_depend_on_the_order(answers, random):
    turned = random.sample(answers, len(answers))
    values = {cons_at_k(some, [a == "2" for a in some]) for some in (answers, turned)}
    assert len(values) == 1


@pytest.mark.parametrize(
    ("answers", "value"),
    [
        (["2", "2", "1"], 1.0),
        (["1", "2", "1"], 0.0),
        (["1", "2"], 0.5),
        (["1", "2", "3", "3", "2"], 0.5),
        ([None, None, "2"], 1.0),
        ([None], 0.0),
    ],
)
def test_ties_count_as_their_share(answers, value):
    assert cons_at_k(answers, [a == "2" for a in answers]) == value


def test_figures_come_with_their_errors():
    found = figure([0.0, 1.0, 1.0, 0.0])
    assert found == (0.5, pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2), 4)
    assert str(found) == "0.500 ± 0.289 (n=4)" and math.isnan(figure([1.0]).error)
