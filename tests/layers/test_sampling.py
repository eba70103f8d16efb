from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers.sampling import draw, nucleus, probabilities, uniforms

# Dyadic shares, so that sums of floats are exact and ties are real.
SHARES = st.lists(st.integers(0, 16), min_size=1, max_size=12).filter(any)


def normalised(shares: list[int]) -> np.ndarray:
    """Whole multiples of 1/256 that sum to 1: what is missing goes to the first."""
    parts = [256 * share // sum(shares) for share in shares]
    parts[0] += 256 - sum(parts)
    return np.array(parts) / 256


@given(SHARES, st.integers(1, 256))
def test_the_nucleus_is_the_smallest_set_of_that_mass(shares, numerator):
    p, top_p = normalised(shares), numerator / 256
    kept = nucleus(p, top_p) > 0
    mass = [Fraction(x) for x in p]
    inside = sum(m for m, k in zip(mass, kept) if k)
    assert inside >= Fraction(top_p), "its mass is enough"
    least = min(m for m, k in zip(mass, kept) if k)
    assert inside - least < Fraction(top_p), "without its least likely token it is not"
    for i in np.flatnonzero(kept):
        for j in np.flatnonzero(~kept):
            assert (-mass[i], i) < (-mass[j], j), "the likelier stay, of equals the first"
    assert nucleus(p, top_p) == pytest.approx(np.where(kept, p, 0) / float(inside), abs=1e-15)


@given(st.integers(0, 10**6), st.floats(0.05, 5), st.floats(0.01, 1))
def test_rows_are_cut_each_by_itself(seed, temperature, top_p):
    logits = np.random.default_rng(seed).normal(0, 3, (3, 2, 7)).astype(np.float32)
    p = probabilities(logits, temperature, top_p)
    assert p.dtype == np.float64 and p.sum(axis=-1) == pytest.approx(1)
    for i in range(3):
        for j in range(2):
            assert (p[i, j] == probabilities(logits[i, j], temperature, top_p)).all()


def test_temperature_is_a_power_of_odds():
    logits = np.log([[0.1, 0.6, 0.3]])
    assert probabilities(logits, 1.0, 1.0) == pytest.approx(np.array([[0.1, 0.6, 0.3]]))
    assert probabilities(logits, 0.5, 1.0) == pytest.approx(np.array([[0.01, 0.36, 0.09]]) / 0.46)
    assert probabilities(np.array([3.0, 5.0, 5.0]), 0.0, 1.0).tolist() == [0, 1, 0], "the first of equals"
    assert probabilities(np.array([1e9, -1e9, 0.0]), 1e-3, 1.0).tolist() == [1, 0, 0]


@given(SHARES, st.integers(0, 2**53 - 1))
def test_a_draw_is_the_token_at_that_share(shares, numerator):
    p, u = normalised(shares), numerator / 2**53
    token = draw(p[None], np.array([u]))[0]
    before = sum((Fraction(x) for x in p[:token]), Fraction(0))
    assert before <= Fraction(u) < before + Fraction(p[token])


def test_a_token_without_weight_is_never_drawn():
    weights = np.array([[0.0, 0.1, 0.2, 0.7, 0.0, 0.0], [0.0, 0.0, 0.3, 0.0, 1e-300, 0.0]])
    assert draw(weights, np.array([0.0, 0.0])).tolist() == [1, 2]
    assert draw(weights, np.full(2, 1 - 2**-53)).tolist() == [3, 2]


def test_numbers_belong_to_seed_row_and_position():
    table = uniforms(7, np.array([0, 0, 4]), 6)
    assert table.shape == (3, 6, 3) and len(set(table[:2].ravel())) == 36
    assert (uniforms(7, np.array([0, 2]), 4)[1] == table[1, 2:]).all(), "a later start finds the same"
    assert (uniforms(7, np.array([0, 0, 0]), 8)[2, 4:] == table[2, :4]).all()
    assert not (uniforms(8, np.array([0]), 6)[0] == table[0]).any()
    assert 0.4 < uniforms(0, np.arange(50), 50).mean() < 0.6
