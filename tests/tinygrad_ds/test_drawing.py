"""Draws: the distribution that is asked for, and the fused form draws what the reference draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import reals
from tinygrad_ds.ops.drawing import draw_tokens

FORMS = ["reference", "fused"]


@pytest.fixture(params=FORMS, autouse=True)
def form(request):
    with tg.using(kernels=request.param):
        yield request.param


def test_shares_fall_to_tokens_as_their_probabilities_are():
    """The last token with weight takes what rounding leaves."""
    p = np.array([0.2, 0.5, 0.3])
    logits = np.log([[*p, 1e-320]] * 6)
    u = np.array([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 1e-16])
    drawn = draw_tokens(logits, u, temperature=1.0)
    assert drawn.tokens.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(drawn.logp, np.log(p[drawn.tokens]), rtol=1e-12)
    np.testing.assert_allclose(drawn.entropy, -(p * np.log(p)).sum(), rtol=1e-12)


def test_temperature_sharpens_and_zero_takes_the_first_of_the_largest():
    logits = np.array([[1.0, 3.0, 2.0, 3.0]])
    q = np.exp(2 * logits[0]) / np.exp(2 * logits[0]).sum()
    drawn = draw_tokens(logits, np.array([0.5 * q[0]]), temperature=0.5)
    assert drawn.tokens == [0] and drawn.logp == pytest.approx(np.log(q[0]))
    greedy = draw_tokens(logits, np.array([0.99]), temperature=0)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert greedy.tokens == [1] and greedy.logp == pytest.approx(np.log(p[1]))
    assert greedy.entropy == pytest.approx(-(p * np.log(p)).sum())


@settings(max_examples=30)
@given(st.data(), st.sampled_from([0.0, 0.6, 1.0, 2.0]), st.sampled_from([np.float64, np.float32]))
def test_both_forms_agree(data, temperature, dtype):
    logits = data.draw(reals((5, data.draw(st.integers(1, 70))), low=-4, high=4)).astype(dtype)
    u = data.draw(reals((5,), low=0.0, high=0.999))
    with tg.using(kernels="reference"):
        wanted = draw_tokens(logits, u, temperature=temperature)
    drawn = draw_tokens(logits, u, temperature=temperature)
    assert np.array_equal(drawn.tokens, wanted.tokens)
    tolerance = 1e-12 if dtype == np.float64 else 5e-6
    for a, b in zip(drawn[1:], wanted[1:]):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_many_draws_have_the_frequencies():
    logits = np.log(np.array([0.1, 0.6, 0.05, 0.25], dtype=np.float32))[None].repeat(20_000, axis=0)
    drawn = draw_tokens(logits, np.random.default_rng(0).random(20_000), temperature=1.0)
    np.testing.assert_allclose(np.bincount(drawn.tokens) / 20_000, [0.1, 0.6, 0.05, 0.25], atol=0.01)
