"""Lanes in kernels: their arithmetic and the small products, against NumPy."""

import numba
import numpy as np
import pytest

from tinygrad_ds.kernels.cpu import lanes, tiles

DTYPES = [np.float32, np.float64]


def normal(*shape, dtype, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(dtype)


@numba.njit
def _set(a, b, c):
    tiles.set_product(a, b, c)


@numba.njit
def _add(a, b, c):
    tiles.add_product(a, b, c)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 6, 7, 13, 20, 24])
def test_products(rows, dtype):
    """Any number of rows, any depth, `a` of any layout; and no row beside the result is touched."""
    width = lanes.BYTES // 2 // np.dtype(dtype).itemsize
    for depth, columns in ((0, 2), (1, 4), (37, 2), (8, 6), (5, 1), (33, 3)):
        a, b = normal(rows, depth, dtype=dtype), normal(depth, columns * width, dtype=dtype)
        for layout in (np.ascontiguousarray, np.asfortranarray, lambda x: x.repeat(2, axis=1)[:, ::2]):
            memory = np.full((rows + 2, columns * width), 7, dtype)
            _set(layout(a), b, memory[1:-1])
            assert np.allclose(memory[1:-1], a @ b, rtol=1e-5, atol=1e-5)
            _add(layout(a), b, memory[1:-1])
            assert np.allclose(memory[1:-1], 2 * (a @ b), rtol=1e-5, atol=1e-5)
            assert (memory[0] == 7).all() and (memory[-1] == 7).all()


@numba.njit
def _turn(x, out):
    lanes.turn(x, 1, out, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_turn(dtype):
    width = lanes.BYTES // np.dtype(dtype).itemsize
    x, out = normal(width, width + 2, dtype=dtype), np.zeros((width + 3, width), dtype)
    _turn(x, out)
    assert np.array_equal(out[2:-1], x[:, 1:-1].T) and not out[:2].any() and not out[-1].any()


@numba.njit
def _operations(x, y, out):
    a, b, one = lanes.load(x, 0, 0), lanes.load(y, 0, 0), lanes.splat(1, x)
    lanes.store(a + b, out, 0, 0)
    lanes.store(a - b, out, 1, 0)
    lanes.store(a * b, out, 2, 0)
    lanes.store(one / a, out, 3, 0)
    lanes.store(lanes.larger(a, b), out, 4, 0)
    lanes.store(lanes.where_less(a, b, one, a), out, 5, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations(dtype):
    width = lanes.BYTES // np.dtype(dtype).itemsize
    x, y = normal(1, width, dtype=dtype), normal(1, width, dtype=dtype, seed=1)
    x[0, :3], y[0, :3] = [np.nan, 2, np.inf], [3, np.nan, 5]
    out = np.zeros((6, width), dtype)
    _operations(x, y, out)
    expected = [x + y, x - y, x * y, 1 / x, np.where(x > y, x, y), np.where(x < y, 1, x)]
    assert np.array_equal(out, np.concatenate(expected).astype(dtype), equal_nan=True)


@numba.njit
def _exp(x, out):
    for n in range(len(x)):
        lanes.store(lanes.exp(lanes.load(x, n, 0)), out, n, 0)


@pytest.mark.parametrize(("dtype", "low"), [(np.float32, -86), (np.float64, -707)])
def test_exp_is_right_to_one_unit_in_the_last_place(dtype, low):
    width = lanes.BYTES // np.dtype(dtype).itemsize
    x = np.concatenate([np.linspace(low, 80, 20000), normal(12000, dtype=dtype) * 1e-3]).astype(dtype)
    out = np.empty((len(x) // width, width), dtype)
    _exp(x.reshape(out.shape), out)
    exact = np.exp(x.astype(np.longdouble))
    assert (np.abs(out.reshape(-1) - exact) <= np.spacing(exact.astype(dtype))).all()
    ends = np.resize(np.array([0, -0.0, -1e4, -np.inf, np.nan, -np.nan, low - 1, 1], dtype), (1, width))
    out = np.empty_like(ends)
    _exp(ends, out)
    expected = np.array([1, 1, 0, 0, np.nan, np.nan, 0, np.e], dtype)
    assert np.array_equal(out[0, :8], expected, equal_nan=True)
