import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.block_scales import BLOCK, E4M3, block_scales, is_quantised, quantise
from layers.tensor_file import read_header
from tests.layers.cases import GOLDEN
from tinygrad_ds.ops.quantize import expand, scales_shape

BLOCKS = (BLOCK, BLOCK)
SIZES = st.sampled_from([1, 2, 127, 128, 129, 160, 256, 300])


def restored(weight):
    return quantise(weight).astype(np.float32) * expand(block_scales(weight), weight.shape, (128, 128))


@settings(max_examples=30)
@given(SIZES, SIZES, st.integers(0, 9))
def test_each_block_has_the_scale_of_its_own_largest_entry(rows, columns, seed):
    """Edge blocks are smaller, and what they lack changes nothing."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    weight *= np.float32(10.0) ** np.random.default_rng(seed).integers(-6, 6)
    scales = block_scales(weight)
    assert scales.shape == scales_shape(weight.shape, BLOCKS) == (-(-rows // 128), -(-columns // 128))
    for i, j in np.ndindex(scales.shape):
        block = np.s_[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
        assert scales[i, j] == np.abs(weight[block]).max() / np.float32(448)
        np.testing.assert_array_equal(expand(scales, weight.shape, (128, 128))[block], scales[i, j])
        assert np.abs(quantise(weight)[block].astype(np.float32)).max() == 448


@settings(max_examples=20)
@given(SIZES, SIZES, st.integers(0, 9))
def test_values_are_off_by_a_sixteenth_at_most_and_quantising_again_changes_nothing(rows, columns, seed):
    """Three bits of mantissa: half a step is 1/16 of a value, or of the smallest normal number 2^-6."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    scale = expand(block_scales(weight), weight.shape, (128, 128))
    assert (np.abs(restored(weight) - weight) <= np.maximum(np.abs(weight), scale * 2**-6) / 16 * 1.001).all()
    np.testing.assert_array_equal(restored(restored(weight)), restored(weight))
    np.testing.assert_array_equal(
        quantise(restored(weight)).astype(np.float32), quantise(weight).astype(np.float32)
    )


def test_zeros_stay_zeros():
    weight = np.zeros((130, 5), np.float32)
    assert (block_scales(weight) == 1).all() and not restored(weight).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scales_are_float32_whatever_the_weight_is(dtype):
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    assert block_scales(weight).dtype == np.float32 and quantise(weight).dtype == E4M3


def test_tensors_kept_in_fp8_are_those_of_the_published_format():
    stored = read_header(GOLDEN / "v3_fp8" / "model.safetensors")
    in_fp8 = {name for name, each in stored.items() if each.dtype == E4M3}
    assert in_fp8 == {name for name in stored if is_quantised(name)}
    assert not is_quantised("model.layers.2.eh_proj.weight")
    for name in in_fp8:
        assert stored[f"{name}_scale_inv"].shape == scales_shape(stored[name].shape, BLOCKS)
