"""Rounding to narrow formats: bit for bit what ml_dtypes does, and what any rounding must do."""

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_ds.formats import (
    FORMATS,
    decode,
    decode_power,
    encode,
    encode_power,
    find_format,
    power_of_two_above,
    random_bits,
    round_to,
)

PUBLISHED = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
EVERY = list(FORMATS)


def every_bfloat16():
    return np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)


def million_float32():
    """Any bits at all, NaN and infinities among them."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1_000_000, dtype=np.uint64)
    return bits.astype(np.uint32).view(np.float32)


def around_one():
    """A million numbers of the sizes that the formats have."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=1_000_000) * np.exp2(rng.integers(-20, 18, 1_000_000))).astype(np.float32)


@cache
def grid(name):
    """All finite numbers of a format, ascending."""
    form = find_format(name)
    values = decode(np.arange(1 << (1 + form.exponent_bits + form.mantissa_bits), dtype=form.code), name)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("numbers", [every_bfloat16, million_float32, around_one])
def test_unsaturated_rounding_is_that_of_ml_dtypes_bit_for_bit(name, numbers):
    x = numbers()
    with np.errstate(all="ignore"):
        published = x.astype(PUBLISHED[name])
    rounded = round_to(x, name, saturate=False)
    assert np.array_equal(encode(rounded, name), published.view(np.uint8))
    assert np.array_equal(rounded, published.astype(np.float32), equal_nan=True)


def test_e4m3_has_no_infinity_and_turns_465_into_nan():
    x = np.array([448, 464, 465, 480, np.inf, -465], np.float32)
    assert np.array_equal(
        round_to(x, "e4m3", saturate=False), [448, 448, np.nan, np.nan, np.nan, np.nan], equal_nan=True
    )
    assert np.array_equal(round_to(x, "e4m3"), [448, 448, 448, 448, 448, -448])
    largest = np.array([61439, 61440, np.inf], np.float32)
    assert np.array_equal(round_to(largest, "e5m2", saturate=False), [57344, np.inf, np.inf])
    assert np.array_equal(round_to(largest, "e5m2"), [57344] * 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_saturation_clips_first_and_keeps_nan(name):
    """Within the largest number nothing changes; beyond it, infinity included, all become the largest."""
    x, largest = every_bfloat16(), find_format(name).largest
    with np.errstate(all="ignore"):
        published = np.clip(x, -largest, largest).astype(PUBLISHED[name]).astype(np.float32)
    assert np.array_equal(round_to(x, name), published, equal_nan=True)
    assert np.isnan(round_to(x, name)).sum() == np.isnan(x).sum()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_are_all_the_numbers_there_are(name, dtype):
    form = find_format(name)
    codes = np.arange(1 << (1 + form.exponent_bits + form.mantissa_bits), dtype=form.code)
    values = decode(codes, name, dtype)
    known = ~np.isnan(values)
    assert values.dtype == dtype and np.array_equal(encode(values, name)[known], codes[known])
    assert values[np.isfinite(values)].max() == form.largest
    assert np.isinf(values).sum() == (2 if form.has_infinity else 0)
    assert np.isnan(decode(encode(np.array([np.nan], dtype), name), name)).all()


def test_e5m6_is_e5m2_with_four_more_bits():
    """Sixteen steps from one number of e5m2 to the next, and the same range."""
    fine, coarse = grid("e5m6"), grid("e5m2")
    assert np.isin(coarse, fine).all() and fine[fine > 0].min() == coarse[coarse > 0].min() / 16
    between = fine[(fine >= 1) & (fine < 2)]
    assert np.array_equal(between, 1 + np.arange(64) / 64)


@pytest.mark.parametrize("name", EVERY)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-30, 20))
def test_rounding_goes_to_the_nearest_number_of_the_grid(name, seed, power):
    """Within half a step, ties to the number whose last bit is 0; monotone, idempotent and odd."""
    x = np.sort(np.random.default_rng(seed).uniform(-1, 1, 50)).astype(np.float32) * np.float32(2.0**power)
    y, numbers = round_to(x, name), grid(name)
    clipped = np.clip(x, numbers[0], numbers[-1]).astype(np.float64)
    assert np.array_equal(abs(y - clipped), abs(numbers[:, None] - clipped).min(axis=0))
    assert (np.diff(y) >= 0).all()
    assert np.array_equal(round_to(y, name), y) and np.array_equal(round_to(-x, name), -y)


@pytest.mark.parametrize("name", EVERY)
def test_ties_go_to_the_even_number(name):
    numbers = grid(name)
    middle = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float64)
    codes = encode(round_to(middle, name), name)
    assert not (codes & 1).any()


@pytest.mark.parametrize("name", EVERY)
def test_stochastic_rounding_takes_a_neighbour_and_is_right_in_the_mean(name):
    numbers = grid(name)
    x = np.full(100_000, 1.0 + 0.3 * (numbers[numbers > 1].min() - 1), np.float32)
    y = round_to(x, name, bits=random_bits(x.shape, 7, x))
    below, above = 1.0, numbers[numbers > 1].min()
    assert set(np.unique(y)) == {np.float32(below), above}
    share = (y == above).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / len(x))


@pytest.mark.parametrize("name", EVERY)
def test_stochastic_rounding_with_the_same_bits_is_odd_monotone_and_idempotent(name):
    x = np.sort(around_one()[:10_000])
    bits = random_bits(x.shape, 3, x)
    y = round_to(x, name, bits=bits)
    assert np.array_equal(round_to(-x, name, bits=bits), -y)
    assert np.array_equal(round_to(y, name, bits=bits), y)
    same = np.full_like(bits, 1 << 31)
    assert (np.diff(round_to(x, name, bits=same)) >= 0).all()
    assert np.array_equal(
        round_to(np.array([np.nan, np.inf], np.float32), name, bits=bits[:2])[1:], [find_format(name).largest]
    )


def test_random_bits_are_a_function_of_place_and_seed():
    x = np.zeros((300, 400), np.float32)
    bits = random_bits(x.shape, 5, x)
    assert bits.dtype == np.uint32 and np.array_equal(bits, random_bits((120_000,), 5, x).reshape(300, 400))
    assert abs(bits.mean() / 2**32 - 0.5) < 0.005
    assert (bits == random_bits(x.shape, 6, x)).mean() < 1e-4
    for bit in range(32):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 0.01


@given(st.floats(2.0**-126, 2.0**126, width=32))
def test_ue8m0_is_the_power_of_two_above(scale):
    scale = np.array([scale], np.float32)
    power = power_of_two_above(scale)
    assert power >= scale and power < 2 * scale and np.frexp(power)[0] == 0.5
    assert np.array_equal(encode_power(power), power.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    assert np.array_equal(decode_power(encode_power(power)), power)


def test_names_that_are_no_format():
    with pytest.raises(ValueError, match="format is 'e3m4', but there are e4m3, e5m2, e5m6"):
        round_to(np.zeros(1, np.float32), "e3m4")
