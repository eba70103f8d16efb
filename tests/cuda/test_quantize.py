"""Codes of FP8 made and read by the kernels: those of formats.py."""

import cupy
import numpy as np
import pytest

from tinygrad_ds.device import to_host
from tinygrad_ds.formats import decode, encode
from tinygrad_ds.kernels.cuda.quantize import in_tiles, restored
from tinygrad_ds.ops.quantize import expand

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "e5m6"])
@pytest.mark.parametrize("back", [False, True])
def test_codes_are_those_of_the_values(format, back):
    """Over the whole range of a format, NaN, infinities and both zeros among them."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 150)) * 2.0 ** rng.integers(-30, 16, (40, 150))).astype(np.float32)
    x[0, :5] = np.nan, np.inf, -np.inf, 0.0, -0.0
    made = in_tiles(cupy.asarray(x), format, (1, 64), False, None, back=back, keep=True)
    values = to_host(in_tiles(cupy.asarray(x), format, (1, 64), False, None).values)
    assert len(np.unique(values)) > 100
    codes, scales = to_host(made.codes), to_host(made.scales)
    here = encode(values, format)
    assert codes.dtype == here.dtype
    known = ~np.isnan(values)
    np.testing.assert_array_equal(codes[known], here[known])
    assert np.isnan(decode(codes[~known], format)).all()
    y = to_host(restored(made.codes, made.scales, format, 64))
    np.testing.assert_array_equal(y, decode(codes, format) * expand(scales, y.shape, (1, 64)))
    if back:
        np.testing.assert_array_equal(to_host(made.values), y)


def test_more_rows_than_a_grid_has_in_its_second_axis():
    """All axes of blocks but the first end at 65,535; 16 rows of 1,024 tokens, 4 experts each, are more."""
    x = np.random.default_rng(1).uniform(1, 2, size=(65_537, 1)).astype(np.float32)
    made = in_tiles(cupy.asarray(x), "e4m3", (1, 128), False, None, back=True)
    assert made.scales.shape == (65_537, 1)
    np.testing.assert_allclose(to_host(made.values), x, rtol=2e-7)  # each the largest of its tile
