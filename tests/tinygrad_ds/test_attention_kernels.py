"""The attention kernel at sizes of many blocks, in odd layouts and on several threads."""

import re

import numba
import numpy as np
import pytest

import tinygrad_ds as tg
from tests.tinygrad_ds.test_attention import close, draw
from tinygrad_ds.kernels.cpu import attention as fused

# batch, heads, kv_heads, time_q, time_k, d, d_v: more than a block of keys, strips and lanes not full,
# one new token of many heads, more queries than keys, heads of one number
SIZES = [
    (2, 4, 2, 131, 131, 24, 10),
    (1, 6, 1, 1, 205, 40, 32),
    (1, 3, 3, 40, 230, 5, 17),
    (2, 2, 1, 120, 33, 16, 16),
    (1, 1, 1, 100, 100, 1, 1),
]


def case(size, dtype, seed=0):
    batch, heads, kv_heads, time_q, time_k, d, d_v = size
    shapes = (heads, time_q, d), (kv_heads, time_k, d), (kv_heads, time_k, d_v)
    arrays = [draw(batch, *shape, seed=seed + n, dtype=dtype) for n, shape in enumerate(shapes)]
    first = np.random.default_rng(seed).integers(0, time_k // 2, (batch, time_q))
    return arrays, first, draw(batch, heads, time_q, d_v, seed=7, dtype=dtype)


def both_passes(pair, arrays, g, options):
    y, saved = pair.forward(*arrays, **options)
    return y, *pair.backward(saved, g)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_kernel_equals_reference_at_many_blocks(size, dtype, tolerance):
    """The float32 tolerance is that of sums of some hundred products, relative to the largest."""
    arrays, first, g = case(size, dtype)
    packed = {"first": first, "causal": False, "scale": 0.3}
    for options in ({}, {"causal": False}, {"first": first}, packed):
        given = both_passes(tg.attention.fused["cpu"], arrays, g, options)
        exact = [array.astype(np.float64) for array in arrays]
        expected = both_passes(tg.attention, exact, g.astype(np.float64), options)
        for a, b in zip(given, expected):
            assert a.dtype == dtype
            close(a, b, tolerance)


@pytest.mark.parametrize("size", [SIZES[0], (2, 3, 3, 20, 20, 1, 5), (2, 2, 2, 20, 20, 16, 1)])
def test_kernel_takes_heads_where_they_lie_and_lays_out_results_alike(size):
    """(batch, time, heads, d), seen as (batch, heads, time, d): the same bits, in the same order."""
    arrays, _, g = case(size, np.float32)
    turned = [np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2) for array in (*arrays, g)]
    plain = both_passes(tg.attention.fused["cpu"], arrays, g, {})
    again = both_passes(tg.attention.fused["cpu"], turned[:3], turned[3], {})
    assert all(np.array_equal(a, b) for a, b in zip(plain, again))
    for _, of_heads, of_time, of_last in (array.strides for array in again):
        assert of_time > of_heads >= of_last == 4
    shared = np.broadcast_to(arrays[1][:, :1], arrays[1].shape)  # one key for all heads, strides of 0
    close(
        both_passes(tg.attention.fused["cpu"], [arrays[0], shared, arrays[2]], g, {})[2],
        both_passes(tg.attention, [arrays[0], shared.copy(), arrays[2]], g, {})[2],
        5e-6,
    )


def test_kernel_keeps_nothing_of_the_size_of_the_scores():
    arrays, _, _ = case((1, 2, 2, 300, 300, 8, 8), np.float32)
    _, saved = tg.attention.fused["cpu"].forward(*arrays)
    rows = sum(array.nbytes for array in saved if isinstance(array, np.ndarray))
    assert rows < 2 * 300 * 300 * 4 / 8


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="numba was started for one thread")
def test_threads_do_not_change_a_bit(monkeypatch):
    for kernel in (fused._attend_all, fused._differentiate_all):
        monkeypatch.setattr(kernel, "parallel_from", 0)
    arrays, first, g = case(SIZES[0], np.float32)
    before, results = numba.get_num_threads(), []
    for threads in (1, 2, 2):
        numba.set_num_threads(threads)
        results.append(both_passes(tg.attention.fused["cpu"], arrays, g, {"first": first}))
    numba.set_num_threads(before)
    for one, *others in zip(*results):
        assert all(other.tobytes() == one.tobytes() for other in others)


def test_nan_stays_in_its_own_row():
    """A query that is NaN spoils its own output; a key, those that see it."""
    (q, k, v), _, _ = case(SIZES[0], np.float32)
    q[0, 1, 50] = np.nan
    k[1, 0, 100] = np.nan
    y = tg.attention(q, k, v).data
    spoilt = np.isnan(y).any(axis=-1)
    expected = np.zeros_like(spoilt)
    expected[0, 1, 50] = expected[1, :2, 100:] = True
    assert np.array_equal(spoilt, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_the_last_query_does_not_see_spoils_nothing(dtype):
    """A hidden key whose score is e^(10^4) times the largest that is seen: lanes that wait see it no more."""
    q, k, v, g = (draw(1, 1, 3, 4, seed=seed, dtype=dtype) for seed in range(4))
    q[0, 0, 2] = 1.0
    k[0, 0, 0] = 5000.0
    options = {"first": np.array([[0, 0, 1]])}
    given = both_passes(tg.attention.fused["cpu"], (q, k, v), g, options)
    expected = both_passes(tg.attention, (q, k, v), g, options)
    for a, b in zip(given, expected):
        assert np.isfinite(a).all()
        close(a, b, 5e-6)


@pytest.mark.parametrize("kernel", [fused._attend_all, fused._differentiate_all])
def test_no_float64_arithmetic_anywhere_in_the_float32_kernel(kernel):
    compiled = numba.njit(f"void{kernel.signature.replace('T', 'float32')}")(kernel.function)
    (code,) = compiled.inspect_llvm().values()
    assert re.search(r"\bfmul .*float|fma\.v16f32", code)
    assert not re.search(r"\bf(add|sub|mul|div|cmp)\b.* double|fma\.\w*f64|fpext", code)
