"""Reductions: NumPy's values, ties, infinities, and what their gradients add up to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import STRATEGIES, reals, shapes
from tests.tinygrad_ds.strategies.reduction import reductions


def logsumexp(x, axis, keepdims):
    """By its definition; m keeps e^x within range."""
    m = x.max(axis=axis, keepdims=True, initial=-1e9)
    with np.errstate(divide="ignore"):
        y = np.log(np.exp(x - m).sum(axis=axis, keepdims=True)) + m
    return y if keepdims else y.squeeze(axis=tuple(range(x.ndim)) if axis is None else axis)


SAME_AS_NUMPY = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "var": np.var,
    "cumsum": np.cumsum,
    "logsumexp": logsumexp,
}


@pytest.mark.parametrize("name", SAME_AS_NUMPY)
@settings(max_examples=30)
@given(data=st.data())
def test_values_are_numpys(name, data):
    case = data.draw(STRATEGIES[name])
    expected = SAME_AS_NUMPY[name](*case.arrays, **case.options)
    y = tg.primitives[name](*case.arrays, **case.options).data
    assert y.shape == np.shape(expected)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def both_ways(name, x, g=None, **options):
    """The value, and the gradient for an incoming g of 1."""
    y, saved = tg.primitives[name].forward(np.asarray(x, dtype=float), **options)
    return y, tg.primitives[name].backward(saved, np.ones(np.shape(y)) if g is None else g)[0]


@pytest.mark.parametrize("name", ["max", "min"])
@given(data=st.data())
def test_ties_share_equally(name, data):
    """The gradient sums to g, is the same for equal entries, and is 0 where x is not y."""
    whole = st.lists(st.integers(-1, 1), min_size=1, max_size=6)
    x = np.array(data.draw(whole), dtype=float)
    y, grad = both_ways(name, x, g=np.float64(6.0))
    at_y = x == (x.max() if name == "max" else x.min())
    np.testing.assert_allclose(grad, np.where(at_y, 6 / at_y.sum(), 0), rtol=1e-15)


def test_ties_are_counted_row_by_row():
    _, grad = both_ways("max", [[1, 1, 0], [0, 2, 1]], axis=1)
    assert grad.tolist() == [[0.5, 0.5, 0], [0, 1, 0]]


@pytest.mark.parametrize("name", ["max", "min"])
def test_nan_is_an_extreme_and_gets_the_gradient(name):
    y, grad = both_ways(name, [[1, np.nan, 3], [1, 2, 3]], axis=-1)
    assert np.isnan(y).tolist() == [True, False] and grad[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["max", "min"])
def test_no_extreme_of_nothing(name):
    primitive = tg.primitives[name]
    with pytest.raises(ValueError, match=rf"{name} over axes \(0,\) of shape \(0, 3\)"):
        primitive(np.ones((0, 3)), axis=0)
    with pytest.raises(ValueError, match="empty axis"):
        primitive(np.ones(0))
    assert primitive(np.ones((0, 3)), axis=1).shape == (0,)


def test_sums_of_nothing():
    nothing = np.ones((2, 0))
    assert tg.sum(nothing, axis=1).data.tolist() == [0, 0]
    assert tg.logsumexp(nothing, axis=1).data.tolist() == [-np.inf, -np.inf]
    assert tg.cumsum(nothing, axis=1).shape == (2, 0)
    with pytest.warns(RuntimeWarning):
        assert np.isnan(tg.mean(nothing, axis=1).data).all()
    for name in ("sum", "logsumexp"):
        assert both_ways(name, nothing, axis=1)[1].shape == (2, 0)


@given(data=st.data())
def test_gradient_of_logsumexp_is_softmax(data):
    """It sums to g over the reduced axes, and adding a constant to x adds it to y."""
    case = data.draw(reductions(low=-5.0, high=5.0)())
    (x,), axis = case.arrays, case.options["axis"]
    y, grad = both_ways("logsumexp", x, axis=axis, keepdims=True)
    np.testing.assert_allclose(grad, np.exp(x - y), rtol=1e-12)
    np.testing.assert_allclose(grad.sum(axis=axis, keepdims=True), np.ones(y.shape), rtol=1e-12)
    np.testing.assert_allclose(both_ways("logsumexp", x + 3, axis=axis, keepdims=True)[0], y + 3, rtol=1e-12)


def test_logsumexp_at_infinity():
    inf = np.inf
    x = [[-inf, -inf], [-inf, 2], [inf, 2], [inf, inf], [inf, -inf], [1000, 1000], [-1000, -1000]]
    with np.errstate(all="raise", under="ignore"):
        y, grad = both_ways("logsumexp", x, axis=-1)
    log2 = np.log(2)
    np.testing.assert_allclose(y, [-inf, 2, inf, inf, inf, 1000 + log2, -1000 + log2], rtol=1e-15)
    assert grad.tolist() == [[0, 0], [0, 1], [1, 0], [0.5, 0.5], [1, 0], [0.5, 0.5], [0.5, 0.5]]
    assert np.isnan(tg.logsumexp(np.array([np.nan, 1.0])).data)


@given(data=st.data())
def test_gradient_of_var_sums_to_nothing(data):
    """Adding a constant to x changes no variance."""
    case = data.draw(STRATEGIES["var"])
    _, grad = both_ways("var", *case.arrays, **case.options)
    np.testing.assert_allclose(grad.sum(axis=case.options["axis"]), 0, atol=1e-13)


def test_variance_of_too_few_is_nan():
    for n, ddof in ((1, 1), (1, 2), (2, 2)):
        y, grad = both_ways("var", np.arange(n), ddof=ddof)
        assert np.isnan(y) and np.isnan(grad).all()
    assert both_ways("var", [3.0])[1].tolist() == [0]


@given(data=st.data())
def test_mean_is_sum_over_count(data):
    case = data.draw(STRATEGIES["mean"])
    x, y = *case.arrays, tg.primitives["mean"].forward(*case.arrays, **case.options)[0]
    _, of_sum = both_ways("sum", x, **case.options)
    _, of_mean = both_ways("mean", x, **case.options)
    np.testing.assert_allclose(of_mean * (x.size / max(np.size(y), 1)), of_sum, rtol=1e-14)


@given(x=shapes(min_dims=1).flatmap(reals))
def test_cumsum_ends_with_the_sum(x):
    """The first x is a term of every y, the last one of one."""
    n = x.shape[-1]
    y, grad = both_ways("cumsum", x, axis=-1)
    assert np.array_equal(grad, np.broadcast_to(np.arange(n, 0, -1.0), x.shape))
    if n:
        np.testing.assert_allclose(y[..., -1], x.sum(axis=-1), atol=1e-14)


def test_axes_that_there_are_not():
    for name in ("sum", "mean", "max", "min", "var", "logsumexp", "cumsum"):
        with pytest.raises(np.exceptions.AxisError):
            tg.primitives[name](np.ones((2, 3)), axis=2)
    with pytest.raises(ValueError, match="repeated axis"):
        tg.sum(np.ones((2, 3)), axis=(0, -2))
