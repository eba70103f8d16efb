"""What follows from the mathematics of softmax, log_softmax and swiglu, for both kernels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import reals, shapes


@pytest.fixture(scope="module", params=["softmax", "log_softmax"])
def primitive(request):
    return tg.primitives[request.param]


rows = shapes(min_dims=1, min_side=1, max_side=20).flatmap(lambda shape: reals(shape, low=-9.0, high=9.0))


@given(x=rows)
def test_probabilities(kernels, x):
    y = tg.softmax(x).data
    assert (y > 0).all()
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(tg.log_softmax(x).data, np.log(y), rtol=1e-12, atol=1e-12)


@given(x=rows, data=st.data())
def test_gradient_is_orthogonal_to_ones(kernels, primitive, x, data):
    """Adding a constant to a row changes nothing."""
    g = data.draw(reals(x.shape))
    leaf = tg.Tensor(x, requires_grad=True)
    y = primitive(leaf)
    y.backward(g)
    np.testing.assert_allclose(leaf.grad.sum(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(primitive(x + 5).data, y.data, rtol=1e-12, atol=1e-13)


@given(x=rows, data=st.data())
def test_other_axes_are_the_last_one_moved(kernels, primitive, x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    moved = primitive(np.moveaxis(x, axis, -1)).data
    np.testing.assert_allclose(
        primitive(x, axis=axis).data, np.moveaxis(moved, -1, axis), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_and_infinite_entries(kernels, dtype):
    """No overflow; -inf gets nothing; a row of -inf alone, and a NaN, give NaN in their rows."""
    inf, nan = np.inf, np.nan
    x = np.array([[1e4, 1e4 - 1, -1e4], [0, -inf, 0], [-inf, -inf, -inf], [0, nan, 1]], dtype=dtype)
    with np.errstate(invalid="ignore"):
        y = tg.softmax(x).data
        log_y = tg.log_softmax(x).data
    e = np.exp(1.0)
    assert y.dtype == log_y.dtype == dtype
    np.testing.assert_allclose(y[:2], [[e / (1 + e), 1 / (1 + e), 0], [0.5, 0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(log_y[1], [-np.log(2), -inf, -np.log(2)], rtol=1e-6)
    assert np.isnan(y[2:]).all() and np.isnan(log_y[2:]).all()


@given(gate=reals((3, 7), low=-9.0, high=9.0), up=reals((3, 7)))
def test_swiglu_is_silu_times_up(kernels, gate, up):
    y = tg.swiglu(gate, up).data
    np.testing.assert_allclose(y, tg.silu.forward(gate)[0] * up, rtol=1e-13)
    np.testing.assert_allclose(tg.swiglu(gate, -2 * up).data, -2 * y, rtol=1e-15)


def test_swiglu_at_the_ends(kernels):
    """silu(z) goes to z on one side and to 0 on the other, without overflow."""
    gate, up = np.array([-1e4, -800.0, 0.0, 800.0, 1e4]), np.full(5, 2.0)
    with np.errstate(over="raise", invalid="raise"):
        y = tg.swiglu(gate, up).data
    np.testing.assert_allclose(y, [0, 0, 0, 1600, 2e4], rtol=1e-15, atol=1e-300)
