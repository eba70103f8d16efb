"""Scales for tiles, in both forms: DeepSeek's arithmetic, and what quantising may and may not change."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tinygrad_ds.formats import FORMATS, random_bits
from tinygrad_ds.ops.quantize import LEAST_AMAX, expand, scales_shape, tile_size

TILES = [(1, 128), (128, 1), (128, 128), None, (3, 5)]
pytestmark = pytest.mark.usefixtures("kernels")


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(dtype)


def quantised(x, **options):
    """Values and scales as plain arrays, by the kernels that are set."""
    values, scales, _ = tg.quantize(x, **options)
    return values.data, scales.data


def act_quant(x, block=128, power_of_two=False):
    """DeepSeek's published act_quant (inference/kernel.py), line by line: amax, 1e-4, / 448, x / s, cast."""
    y, s = np.empty(x.shape, ml_dtypes.float8_e4m3fn), np.empty((len(x), x.shape[1] // block), np.float32)
    for row in range(len(x)):
        for i in range(s.shape[1]):
            piece = x[row, i * block : (i + 1) * block].astype(np.float32)
            amax = np.maximum(np.max(np.abs(piece)), np.float32(1e-4))
            scale = amax / np.float32(448.0)
            if power_of_two:
                scale = np.float32(np.exp2(np.ceil(np.log2(scale))))
            y[row, i * block : (i + 1) * block] = (piece / scale).astype(ml_dtypes.float8_e4m3fn)
            s[row, i] = scale
    return y, s


def weight_dequant(x, s, block=128):
    """DeepSeek's published weight_dequant: each block of codes, as float32, times its scale."""
    y = np.empty(x.shape, np.float32)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            place = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            y[place] = x[place].astype(np.float32) * s[i, j]
    return y


@pytest.mark.parametrize("power_of_two", [False, True])
def test_activations_are_quantised_as_by_deepseek(power_of_two):
    x = normal(40, 384) * np.exp2(np.random.default_rng(1).integers(-30, 10, (40, 1))).astype(np.float32)
    x[3] = 0
    y, s = act_quant(x, power_of_two=power_of_two)
    values, scales = quantised(x, power_of_two=power_of_two)
    assert np.array_equal(scales, s) and np.array_equal(values, y.astype(np.float32))


def test_weights_are_scaled_back_as_by_deepseek():
    weight = normal(300, 200)
    values, scales = quantised(weight, tile=(128, 128))
    back = tg.dequantize(values, scales, tile=(128, 128)).data
    assert np.array_equal(back, weight_dequant(values.astype(ml_dtypes.float8_e4m3fn), scales))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", [None, 5])
def test_what_quantising_keeps(tile, format, seed):
    """Odd, idempotent, monotone within a tile, and within half a step (a step, if at random) of x / s."""
    x, options = normal(150, 260), {"format": format, "tile": tile, "seed": seed}
    values, scales = quantised(x, **options)
    opposite, same = quantised(-x, **options)
    assert np.array_equal(opposite, -values) and np.array_equal(scales, same)
    size = tile_size(tile, x.shape)
    of_entry = expand(scales, x.shape, size)
    assert scales.shape == scales_shape(x.shape, size)
    ratio = x.astype(np.float64) / of_entry
    step = np.exp2(np.maximum(np.floor(np.log2(abs(ratio))), FORMATS[format].least_exponent))
    step *= 2.0 ** -FORMATS[format].mantissa_bits
    assert (abs(values - ratio) <= step * (0.5 if seed is None else 1) * (1 + 1e-5)).all()
    again, _ = quantised(values * of_entry, **options)
    assert np.array_equal(again, values)
    if seed is None:
        first = x[: size[0], : size[1]].reshape(-1)
        order = np.argsort(first, kind="stable")
        assert (np.diff(values[: size[0], : size[1]].reshape(-1)[order]) >= 0).all()


@settings(max_examples=30)
@given(power=st.integers(-20, 20), seed=st.integers(0, 1000), format=st.sampled_from(list(FORMATS)))
def test_a_power_of_two_moves_into_the_scale(power, seed, format):
    """While amax stays above 1e-4, and below it the values change."""
    x = normal(3, 256, seed=seed)
    values, scales = quantised(x, format=format)
    moved, of_moved = quantised(x * np.float32(2.0**power), format=format)
    amax = abs(x).reshape(3, 2, 128).max(axis=-1) * 2.0**power
    above = amax >= LEAST_AMAX
    assert np.array_equal(of_moved[above], scales[above] * np.float32(2.0**power))
    same = (moved == values).reshape(3, 2, 128).all(axis=-1)
    assert same[above].all() and not same[~above].any()
    assert (of_moved[~above] == np.float32(LEAST_AMAX) / np.float32(FORMATS[format].largest)).all()


@pytest.mark.parametrize("tile", TILES)
def test_zeros_stay_zero_and_have_the_least_scale(tile):
    values, scales = quantised(np.zeros((130, 140), np.float32), tile=tile)
    assert not values.any() and (scales == np.float32(1e-4) / np.float32(448)).all()


@pytest.mark.parametrize("tile", TILES)
def test_nan_stays_and_infinity_becomes_the_largest_and_is_counted(tile):
    x = normal(130, 140)
    x[1, 2], x[128, 3], x[5, 130] = np.nan, np.inf, -np.inf
    clean = np.where(np.isfinite(x), x, 0)
    given, expected = tg.quantize(x, tile=tile), tg.quantize(clean, tile=tile)
    assert np.array_equal(given.scales.data, expected.scales.data)
    assert np.isnan(given.values.data[1, 2]) and given.infinities.data == 2
    assert given.values.data[128, 3] == 448 and given.values.data[5, 130] == -448
    rest = np.isfinite(x)
    assert np.array_equal(given.values.data[rest], expected.values.data[rest])
    assert expected.infinities.data == 0


def test_a_tile_that_is_all_nan_says_where():
    x = normal(200, 300)
    x[7, 256:] = np.nan
    assert np.isnan(quantised(x, tile=(128, 1))[0][7, 256:]).all()
    with pytest.raises(FloatingPointError, match="rows 7 to 7, columns 256 to 299 of 200 x 300 are all NaN"):
        tg.quantize(x)
    x[:] = np.nan
    with pytest.raises(FloatingPointError, match="rows 0 to 199, columns 0 to 299 of 200 x 300 are all NaN"):
        tg.quantize(x, tile=None)


def test_tiles_at_the_edge_are_smaller():
    """A matrix whose sides 128 does not divide has the scales of the same matrix filled up with zeros."""
    x = normal(200, 300)
    whole = np.zeros((256, 384), np.float32)
    whole[:200, :300] = x
    for tile in TILES[:3]:
        values, scales = quantised(x, tile=tile)
        padded, of_padded = quantised(whole, tile=tile)
        assert np.array_equal(values, padded[:200, :300])
        down, across = scales.shape
        assert np.array_equal(scales, of_padded[:down, :across])


def test_leading_axes_are_rows():
    x = normal(4, 5, 150)
    values, scales = quantised(x)
    assert values.shape == x.shape and scales.shape == (20, 2)
    assert np.array_equal(scales, quantised(x.reshape(20, 150))[1])
    assert quantised(np.float32(3.0).reshape(()))[0].shape == ()


def test_an_outlier_destroys_a_scale_for_all_and_not_one_for_a_tile():
    """One channel times 1000, where tokens differ in size by up to 1000 as gradients do.

    Where all tokens are of one size the exponents of E4M3 make room for as much, and little is lost.
    """
    plain = normal(256, 1024) * np.float32(10) ** np.random.default_rng(2).uniform(-3, 0, (256, 1)).astype(
        "f4"
    )
    outlier = plain.copy()
    outlier[:, 5] *= 1000
    others = np.arange(1024) >= 128  # the outlier's own tile aside

    def errors(x, tile):
        """The relative error of each token, and the share of numbers that became 0."""
        values, scales = quantised(x, tile=tile)
        back = tg.dequantize(values, scales, tile=tile).data[:, others]
        x = x[:, others]
        return np.sqrt(((back - x) ** 2).sum(axis=1) / (x**2).sum(axis=1)), (back == 0).mean()

    for x, tile in ((plain, None), (plain, (1, 128)), (outlier, (1, 128))):
        error, lost = errors(x, tile)
        assert error.max() < 0.04 and lost < 0.03
    error, lost = errors(outlier, None)
    assert error.mean() > 0.2 and error.max() > 0.9 and lost > 0.2
    same_size = normal(256, 1024)
    same_size[:, 5] *= 1000
    assert np.median(errors(same_size, None)[0]) < 0.04


def test_through_both_the_gradient_is_unchanged():
    """Straight through: to the bit where scales are powers of two, to rounding elsewhere."""
    g = normal(30, 200, seed=1)
    for power_of_two in (True, False):
        x = tg.Tensor(normal(30, 200), requires_grad=True)
        values, scales, _ = tg.quantize(x, power_of_two=power_of_two)
        tg.dequantize(values, scales).backward(g)
        assert np.allclose(x.grad, g, rtol=0 if power_of_two else 3e-7, atol=0)


def test_values_alone_send_a_gradient_back_and_scales_alone_none():
    x, g = tg.Tensor(normal(3, 200), requires_grad=True), normal(3, 200, seed=1)
    values, scales, _ = tg.quantize(x)
    values.backward(g)
    assert np.allclose(x.grad, g / expand(scales.data, x.shape, (1, 128)), rtol=1e-6, atol=0)
    x.grad = None
    tg.quantize(x).scales.backward(np.ones(scales.shape, np.float32))
    assert x.grad is None or not x.grad.any()


def test_narrow_arrays_are_quantised_in_float32():
    x = normal(4, 256).astype(ml_dtypes.bfloat16)
    result, saved = tg.quantize.forward(x)
    (grad,) = tg.quantize.backward(saved, (result.values, None, None))
    assert grad.dtype == x.dtype and grad.shape == x.shape
    values, scales = quantised(x)
    wide, of_wide = quantised(x.astype(np.float32))
    assert values.dtype == x.dtype and scales.dtype == np.float32
    assert np.array_equal(values.astype(np.float32), wide) and np.array_equal(scales, of_wide)


def test_what_cannot_be_quantised_so():
    x = normal(4, 256)
    for tile in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"tile is {tile[0]} x {tile[1]}, but it has at least one row"):
            tg.quantize(x, tile=tile)
    with pytest.raises(ValueError, match="format is 'fp8'"):
        tg.quantize(x, format="fp8")
    with pytest.raises(ValueError, match=r"scales has shape \(4, 1\), but a matrix \(4, 256\) has \(4, 2\)"):
        tg.dequantize(x, np.ones((4, 1), np.float32))


def test_random_bits_are_those_of_the_place_in_the_matrix():
    x = np.full((40, 300), 1.03, np.float32)
    x[0, 0] = 448
    values, scales = quantised(x, tile=None, seed=9)
    assert scales == 1 and set(np.unique(values)) == {1, 1.125, 448}
    up = random_bits(x.shape, 9, x) / 2**32 < (x - 1) / 0.125
    assert np.array_equal((values == 1.125)[1:], up[1:])
