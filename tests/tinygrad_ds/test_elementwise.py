"""Elementwise primitives and activations: NumPy's values, and the slopes chosen where there is a choice."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import STRATEGIES, reals
from tests.tinygrad_ds.strategies import activation, elementwise  # noqa: F401 - fills STRATEGIES

SAME_AS_NUMPY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "negative": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "abs": np.abs,
    "where": np.where,
    "clip": lambda x, low, high: np.minimum(
        np.maximum(x, -np.inf if low is None else low), np.inf if high is None else high
    ),
    "astype": lambda x, dtype: x.astype(dtype),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.where(x > 0, x, 0),
}


@pytest.mark.parametrize("name", SAME_AS_NUMPY)
@settings(max_examples=30)
@given(data=st.data())
def test_values_are_numpys(name, data):
    case = data.draw(STRATEGIES[name])
    expected = SAME_AS_NUMPY[name](*case.arrays, **case.options)
    np.testing.assert_allclose(tg.primitives[name](*case.arrays, **case.options).data, expected, rtol=1e-13)


def gradients(name, *arrays, g=1.0, **options):
    """The gradients of a primitive on plain numbers, for an incoming gradient of g everywhere."""
    arrays = [np.asarray(a) if np.asarray(a).dtype == bool else np.asarray(a, dtype=float) for a in arrays]
    y, saved = tg.primitives[name].forward(*arrays, **options)
    return tg.primitives[name].backward(saved, np.full(np.shape(y), g))


@pytest.mark.parametrize(
    ("name", "arrays", "options", "expected"),
    [
        ("abs", [[-2.0, 0.0, 3.0]], {}, [[-1, 0, 1]]),
        ("relu", [[-2.0, 0.0, 3.0]], {}, [[0, 0, 1]]),
        ("maximum", [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]], {}, [[0.5, 0, 1], [0.5, 1, 0]]),
        ("minimum", [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]], {}, [[0.5, 1, 0], [0.5, 0, 1]]),
        ("clip", [[-2.0, -1.0, 0.0, 1.0, 2.0]], {"low": -1, "high": 1}, [[0, 1, 1, 1, 0]]),
        ("clip", [[-2.0, 0.0]], {"low": -1}, [[0, 1]]),
        ("clip", [[-2.0, 0.0]], {}, [[1, 1]]),
        ("where", [[True, False], 1.0, 2.0], {}, [None, 1, 1]),
        ("sqrt", [0.0], {}, [math.inf]),
    ],
)
def test_slopes_at_kinks_and_ties(name, arrays, options, expected):
    with np.errstate(divide="ignore"):
        given_gradients = gradients(name, *arrays, **options)
    for a, b in zip(given_gradients, expected, strict=True):
        assert (a is None) == (b is None) and (b is None or np.array_equal(a, b))


@pytest.mark.parametrize(
    ("a", "b", "y", "slope_a", "slope_b"),
    [
        (2.0, 3.0, 8.0, 12.0, 8 * math.log(2)),
        (-2.0, 3.0, -8.0, 12.0, 0.0),
        (-2.0, 2.0, 4.0, -4.0, 0.0),
        (-2.0, -1.0, -0.5, -0.25, 0.0),
        (-2.0, 0.0, 1.0, 0.0, 0.0),
        (0.0, 3.0, 0.0, 0.0, 0.0),
        (0.0, 2.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 1.0, 0.0),
        (0.0, 0.5, 0.0, math.inf, 0.0),
        (0.0, 0.0, 1.0, 0.0, 0.0),
        (0.0, -1.0, math.inf, -math.inf, 0.0),
        (math.inf, 0.0, 1.0, 0.0, None),
    ],
)
def test_power_at_zero_and_below(a, b, y, slope_a, slope_b):
    with np.errstate(divide="ignore", invalid="ignore"):
        grad_a, grad_b = gradients("power", a, b)
    assert tg.power(a, b).data == pytest.approx(y)
    assert grad_a == pytest.approx(slope_a)
    assert slope_b is None or grad_b == pytest.approx(slope_b)


def test_power_says_nothing_to_numpys_warnings():
    """Where y and its slopes are finite, no step on the way is infinite or NaN."""
    with np.errstate(all="raise"):
        gradients("power", [-2.0, -1.0, 0.0, 0.0, 0.0, 3.0], [3.0, -1.0, 0.0, 1.0, 2.0, -0.5])


@given(data=st.data())
def test_larger_and_smaller_share_the_gradient(data):
    """max(a, b) + min(a, b) = a + b, so their gradients add to those of a + b: g for both, ties included."""
    whole = st.integers(-2, 2)
    pairs = np.array(data.draw(st.lists(st.tuples(whole, whole), min_size=1, max_size=8)), dtype=float)
    a, b = pairs.T
    for larger, smaller in zip(gradients("maximum", a, b, g=3.0), gradients("minimum", a, b, g=3.0)):
        assert np.array_equal(larger + smaller, np.full(len(a), 3.0))


def test_extremes_pass_nan_on():
    nan = math.nan
    for name in ("maximum", "minimum", "relu", "abs"):
        arrays = [[nan, 1.0]] * tg.primitives[name].arrays
        assert np.isnan(tg.primitives[name](*map(np.array, arrays)).data).tolist() == [True, False]


@given(x=reals((5,), low=-700.0, high=700.0))
def test_sigmoid_far_from_zero(x):
    """sigma(x) + sigma(-x) = 1; no overflow, and small values keep all their digits."""
    with np.errstate(over="raise", invalid="raise"):
        y, opposite = tg.sigmoid(x).data, tg.sigmoid(-x).data
        gradients("sigmoid", x)
        gradients("silu", x)
    assert np.abs(y + opposite - 1).max() <= 2**-52
    small = x < -40
    np.testing.assert_allclose(y[small], np.exp(x[small]), rtol=1e-15)


@given(x=reals((5,), low=-6.0, high=6.0))
def test_activations_differ_from_their_mirror_image_by_x(x):
    """f(x) - f(-x) = x for silu, gelu and relu: each is x/2 plus an even function."""
    for f in (tg.silu, tg.gelu, tg.relu):
        np.testing.assert_allclose((f(x) - f(-x)).data, x, atol=1e-15)


def test_gelu_is_close_to_its_definition():
    """The tanh form of x Phi(x) is off by less than 5e-4 (Hendrycks and Gimpel 2016)."""
    x = np.linspace(-5, 5, 101)
    phi = np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    assert np.abs(tg.gelu(x).data - x * phi).max() < 5e-4


def test_promotion_is_undone():
    """In float32 * float64 each argument gets a gradient of its own dtype; whole numbers get none."""
    a = tg.Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    b = tg.Tensor(np.ones(3), requires_grad=True)
    for f in (tg.add, tg.subtract, tg.multiply, tg.divide, tg.power, tg.maximum, tg.minimum):
        a.grad = b.grad = None
        y = f(a, b)
        y.sum().backward()
        assert (y.dtype, a.grad.dtype, b.grad.dtype) == (np.float64, np.float32, np.float64)
        assert f.backward(f.forward(np.ones(2), np.ones(2, np.int64))[1], np.ones(2))[1] is None


def test_bounds_and_numbers_do_not_promote():
    x = np.array([-2, 0.25], np.float32)
    for y in (
        tg.clip(x, low=np.float64(-1), high=1.5),
        tg.clip(x, -1, 1),
        tg.where(x > 0, x, np.float64(2)),
        tg.maximum(x, 0.5),
        tg.power(x, 2),
    ):
        assert y.dtype == np.float32


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_gradients_come_back_in_the_format_that_went_in(narrow):
    """x (float32) -> narrow -> float32: y is rounded, the gradient too, and both ends stay float32."""
    x = tg.Tensor(np.array([1.0, 1.0 + 2**-12], np.float32), requires_grad=True)
    y = x.astype(narrow).astype("float32")
    y.backward(np.array([1.0 + 2**-12, 2.0], np.float32))
    assert y.data.tolist() == [1, 1] and x.grad.tolist() == [1, 2] and x.grad.dtype == np.float32


def test_astype_copies():
    x = np.ones(2)
    assert not np.shares_memory(tg.astype(x, dtype="float64").data, x)


def test_astype_names_the_format_that_there_is_not():
    with pytest.raises(ValueError, match="dtype is 'float12'"):
        tg.astype(np.ones(2), dtype="float12")
