import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekConfig
from layers.rope import Rotary, frequencies, rotation_scale, softmax_scale
from tests.layers.cases import GOLDEN, tiny

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def published(name):
    return DeepSeekConfig.from_json(GOLDEN / "configs" / f"{name}.json")


def stretched(dim=64, **settings):
    return tiny(qk_rope_head_dim=dim, rope_scaling=YARN | settings)


def test_plain_frequencies_are_powers_of_theta():
    np.testing.assert_allclose(frequencies(tiny(rope_theta=100.0)), [1.0, 0.1], rtol=1e-15)


def test_yarn_keeps_fast_pairs_slows_slow_ones_and_blends_between():
    """The pairs of DeepSeek-V3: a pair turns 4096 f / 2 pi times within the trained length."""
    plain, yarn = frequencies(tiny(qk_rope_head_dim=64)), frequencies(stretched())
    turns = 4096 * plain / (2 * math.pi)
    np.testing.assert_array_equal(yarn[turns >= 33], plain[turns >= 33])
    # bounds are rounded outwards to whole pairs, so the ramp goes on for at most one pair below 1 turn
    settled = np.flatnonzero(turns < 1)[1:]
    np.testing.assert_allclose(yarn[settled], plain[settled] / 40, rtol=1e-14)
    ratio = plain / yarn
    assert (np.diff(ratio) >= 0).all() and ratio[0] == 1 and 1 < ratio[15] < 40


def test_yarn_by_hand():
    """d = 8, theta = 10000, length 4096: pair i makes 4096 / (2 pi 10^i) turns: 652, 65.2, 6.52, 0.652.

    32 turns lie at pair log10(652 / 32) = 1.31, one turn at 2.81; rounded outwards the ramp goes from 1 to 3.
    """
    expected = np.array([1, 1e-1, 1e-2 * (0.5 + 0.5 / 40), 1e-3 / 40])
    np.testing.assert_allclose(frequencies(stretched(dim=8)), expected, rtol=1e-13)


def test_ramp_without_width_is_a_step():
    """Both bounds at one pair: nothing is divided by zero."""
    f = frequencies(stretched(dim=4, original_max_position_embeddings=1))
    assert np.isfinite(f).all()


@pytest.mark.parametrize(
    "settings, rotation, softmax",
    [
        ({}, 1 + 0.1 * math.log(40), 1.0),  # neither is set: m(1) on cos and sin
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0, (1 + 0.1 * math.log(40)) ** 2),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0, (1 + 0.0707 * math.log(40)) ** 2),
        (
            {"mscale": 1.0, "mscale_all_dim": 0.5},
            (1 + 0.1 * math.log(40)) / (1 + 0.05 * math.log(40)),
            (1 + 0.05 * math.log(40)) ** 2,
        ),
        ({"mscale": 2.0}, 1 + 0.1 * math.log(40), 1.0),  # without its partner it does nothing
        ({"attention_factor": 1.5, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.5, (1 + 0.1 * math.log(40)) ** 2),
        ({"factor": 1}, 1.0, 1.0),
    ],
)
def test_scales(settings, rotation, softmax):
    config = stretched(**settings)
    assert rotation_scale(config) == pytest.approx(rotation, rel=1e-14)
    assert softmax_scale(config) == pytest.approx(softmax / math.sqrt(config.qk_head_dim), rel=1e-14)
    cos, sin = Rotary(config, np.dtype("float64"))(np.arange(5))
    np.testing.assert_allclose(cos**2 + sin**2, rotation**2, rtol=1e-13)


def test_scales_of_published_models():
    """V3: m = 0.1 ln 40 + 1 = 1.3689, squared on the scores; V2-Lite with mscale 0.707."""
    assert rotation_scale(published("deepseek_v3")) == 1.0
    assert softmax_scale(published("deepseek_v3")) == pytest.approx(192**-0.5 * 1.3688879454**2, rel=1e-9)
    assert softmax_scale(published("deepseek_v2_lite")) == pytest.approx(
        192**-0.5 * 1.2608037774**2, rel=1e-9
    )


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([{}, YARN]),
)
def test_scores_depend_on_the_distance_alone(i, j, shift, interleaved, scaling):
    config = tiny(
        qk_rope_head_dim=8, max_position_embeddings=4096, **({"rope_scaling": scaling} if scaling else {})
    )
    rotary, rng = Rotary(config, np.dtype("float64")), np.random.default_rng(i)
    q, k = rng.normal(size=(2, 1, 8))

    def score(at_q, at_k):
        turned = [
            tg.rope(x, *rotary(np.array([at])), interleaved=interleaved).data
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(i + shift, j + shift) == pytest.approx(score(i, j), abs=1e-10)


def test_angles_are_exact_far_out():
    """Computed in float64 before the cast: at position 163839 float32 angles would be off by a hundredth."""
    config = tiny(qk_rope_head_dim=4, max_position_embeddings=163840)
    cos, sin = Rotary(config, np.dtype("float32"))(np.array([163839]))
    assert cos.dtype == np.float32
    angle = 163839 * np.array([1.0, 0.01])
    np.testing.assert_allclose([cos[0], sin[0]], [np.cos(angle), np.sin(angle)], rtol=1e-6)


def test_positions_beyond_the_longest_sequence_are_refused():
    rotary = Rotary(tiny(max_position_embeddings=8), np.dtype("float32"))
    rotary(np.array([[0], [7]]))
    rotary(np.zeros((0, 1), int))
    with pytest.raises(ValueError, match="has 9 tokens but max_position_embeddings is 8: shorten it"):
        rotary(np.array([[3], [8]]))
