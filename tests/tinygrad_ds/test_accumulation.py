"""The model of a tensor core's sums: what is cut off, and what promoting saves."""

import numpy as np
import pytest

import tinygrad_ds as tg
from tinygrad_ds.kernels.cpu import accumulation
from tinygrad_ds.ops.accumulation import multiply


def by_hand(a, b, promote_every):
    """One entry of the product, number by number, in float64."""
    total = kept = 0.0
    for k in range(0, len(a), 32):
        addends = [*(float(x) * float(y) for x, y in zip(a[k : k + 32], b[k : k + 32])), kept]
        step = 2.0 ** (np.frexp(max(map(abs, addends)))[1] - 1 - 13)
        kept = sum(np.trunc(x / step) * step for x in addends)
        step = 2.0 ** (np.frexp(kept)[1] - 1 - 13)
        kept = np.trunc(kept / step) * step
        if promote_every and (k + 32) % promote_every == 0:
            total, kept = total + kept, 0.0
    return total + kept


@pytest.mark.parametrize("promote_every", [None, 32, 128])
def test_every_entry_is_what_the_description_says(promote_every):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 200)), rng.normal(size=(200, 4))
    expected = [[by_hand(row, column, promote_every) for column in b.T] for row in a]
    assert np.allclose(multiply(a, b, "tensor_core", promote_every), expected, rtol=1e-14, atol=0)


def quantised(x, tile):
    values, scales, _ = tg.quantize(x, tile=tile)
    return tg.dequantize(values, scales, tile=tile).data


def errors(k, promote_every):
    """The largest and the RMS error of a product of random FP8 factors, relative to its RMS."""
    rng = np.random.default_rng(k)
    a, b = (quantised(rng.normal(size=(48, k)).astype(np.float32), (1, 128)) for _ in "ab")
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    off = multiply(a, b.T, "tensor_core", promote_every) - exact
    rms = np.sqrt((exact**2).mean())
    return np.abs(off).max() / rms, np.sqrt((off**2).mean()) / rms


def test_without_promotion_the_error_grows_with_k_to_two_percent():
    """DeepSeek-V3 (section 3.3.2): "a maximum relative error of nearly 2%" at K = 4096; little with N_C."""
    without = np.array([errors(k, None) for k in (512, 1024, 4096)])
    promoted = np.array([errors(k, 128) for k in (512, 1024, 4096)])
    assert (np.diff(without, axis=0) > 0).all()
    assert 0.01 < without[-1, 0] < 0.03
    assert promoted[:, 0].max() < 0.004 and promoted[:, 1].max() < 2 * promoted[:, 1].min()
    assert without[-1, 0] > 8 * promoted[-1, 0]


def test_sums_of_one_sign_only_lose():
    """What is cut off is cut off towards zero, so a long sum of positive numbers comes out too small."""
    a = np.random.default_rng(0).uniform(size=(4, 2048)).astype(np.float32)
    exact = a @ a.T
    assert (multiply(a, a.T, "tensor_core", None) < exact * 0.99).all()
    assert np.abs(multiply(a, a.T, "tensor_core", 128) / exact - 1).max() < 0.004


def test_float32_is_the_plain_product():
    a, b = np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32)
    assert np.array_equal(multiply(a, b), a @ b)
    assert multiply(a, b, "tensor_core", 32).dtype == np.float32
    assert multiply(a[:0], b, "tensor_core", 32).shape == (0, 20)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (("exact", None), "accumulation is 'exact', but it is 'float32' or 'tensor_core'"),
        (("tensor_core", 40), "promote_every is 40, but an instruction adds 32 terms"),
        (("tensor_core", 0), "promote_every is 0"),
    ],
)
def test_what_is_no_way_to_add(how, message):
    with pytest.raises(ValueError, match=message):
        multiply(np.ones((2, 3)), np.ones((3, 2)), *how)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("promote_every", [None, 32, 128])
@pytest.mark.parametrize(("n", "k", "m"), [(5, 200, 70), (3, 7, 2), (40, 7, 2), (0, 4, 3), (3, 0, 4)])
def test_the_fused_sums_are_the_same_to_the_bit(dtype, promote_every, n, k, m):
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(n, k)) * np.exp2(rng.integers(-20, 5, (n, k)))).astype(dtype)
    b = rng.normal(size=(k, m)).astype(dtype)
    if a.size:
        a[0], a[1, 2] = 0, np.nan
    y = accumulation.multiply(a, b, tg.Fp8Recipe(accumulation="tensor_core", promote_every=promote_every))
    assert y.dtype == dtype and np.array_equal(
        y, multiply(a, b, "tensor_core", promote_every), equal_nan=True
    )
