"""gradcheck finds wrong gradients of every kind, and says what is wrong with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tinygrad_ds.gradient_check import check_pair, relative_errors

A = np.random.default_rng(0).normal(size=(3, 3))
X = np.random.default_rng(1).normal(size=(2, 3))
BIAS = np.random.default_rng(2).normal(size=3)


def value(arrays):
    """y = tanh(x A + b): (2, 3), (3, 3), (3,) -> (2, 3)."""
    x, a, b = arrays
    return [np.tanh(x @ a + b)]


def right(arrays, cotangents):
    """u = g (1 - y^2); dL/dx = u A^T, dL/dA = x^T u, dL/db = the sum of the rows of u."""
    x, a, _ = arrays
    u = cotangents[0] * (1 - value(arrays)[0] ** 2)
    return [u @ a.T, x.T @ u, u.sum(axis=0)]


def check(change, position):
    """The report on `right`, with one of its gradients changed."""

    def wrong(arrays, cotangents):
        gradients = right(arrays, cotangents)
        gradients[position] = change(gradients[position])
        return gradients

    return check_pair(value, wrong, [X, A, BIAS])


def one_entry_off(g):
    g = g.copy()
    g.flat[-1] *= 1 + 1e-4
    return g


def with_nan(g):
    g = g.copy()
    g.flat[0] = np.nan
    return g


def test_right_gradients_pass():
    report = check(lambda g: g, 0)
    assert report and report.passed and report.max_error < 1e-9
    assert report.checked == 6 + 9 + 3 and report.hints == []
    assert str(report).startswith("gradient check passed") and "\n" not in str(report)


@pytest.mark.parametrize(
    ("change", "position", "hint"),
    [
        (np.negative, 0, "the gradient of input 0 has the wrong sign"),
        (lambda g: 2 * g, 1, "the gradient of input 1 is off by a constant factor of 2"),
        (lambda g: g / -3, 2, "the gradient of input 2 is off by a constant factor of -0.333333"),
        (np.transpose, 1, "the gradient of input 1 is transposed"),
        (np.transpose, 0, "the gradient of input 0 has shape (3, 2) but the input has (2, 3): transposed?"),
        (lambda g: np.tile(g, (2, 1)), 2, "(2, 3) but the input has (3,): not summed over a broadcast axis?"),
        (lambda g: g[:1], 0, "the gradient of input 0 has shape (1, 3) but the input has (2, 3)"),
        (np.zeros_like, 0, "the gradient of input 0 is zero everywhere"),
        (with_nan, 0, "the gradient of input 0 is not finite"),
    ],
)
def test_wrong_gradients_are_refused_with_a_hint(change, position, hint):
    report = check(change, position)
    assert not report and not report.passed and report.max_error > 1e-3
    assert len(report.hints) == 1 and hint in report.hints[0]
    assert report.worst[0].input == position
    assert f"hint: {report.hints[0]}" in str(report)


def test_one_wrong_entry_is_named():
    report = check(one_entry_off, 1)
    worst = report.worst[0]
    assert not report and (worst.input, worst.element) == (1, (2, 2))
    assert worst.analytic / worst.numeric == pytest.approx(1 + 1e-4, rel=1e-6)
    assert worst.error == pytest.approx(1e-4, rel=1e-3)
    assert report.hints == []
    row = str(report).splitlines()[2].split()
    assert row[0] == "1" and "(2, 2)" in str(report) and "1.0001" in row


def test_tolerance_decides():
    arrays = [X, A, BIAS]

    def wrong(arrays, cotangents):
        return [g * (1 + 1e-7) for g in right(arrays, cotangents)]

    assert check_pair(value, wrong, arrays, tolerance=1e-6)
    assert not check_pair(value, wrong, arrays, tolerance=1e-8)


@given(seed=st.integers(0, 1000), factor=st.floats(1e-12, 1e12))
def test_errors_are_relative(seed, factor):
    """Scaling a function changes no error; swapping the two gradients neither."""
    a, b = np.random.default_rng(seed).normal(size=(2, 5))
    errors = relative_errors(a, b)
    np.testing.assert_allclose(relative_errors(factor * a, factor * b), errors, rtol=1e-9)
    np.testing.assert_allclose(relative_errors(b, a), errors, rtol=1e-12)
    assert (errors <= 2).all() and not relative_errors(a, a).any()


def test_small_entries_are_measured_against_the_largest():
    """Below 1e-3 of the largest entry, rounding would be all that is left to compare."""
    errors = relative_errors(np.array([1.0, 2e-9]), np.array([1.0, 1e-9]))
    np.testing.assert_allclose(errors, [0, 1e-6], rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_an_infinite_error(bad):
    assert relative_errors(np.array([1.0, bad]), np.ones(2))[1] == np.inf
    assert relative_errors(np.ones(2), np.array([1.0, bad]))[1] == np.inf


# Through gradcheck: primitives, functions, options


def test_functions_of_tensors():
    report = tg.gradcheck(lambda x, a: tg.tanh(x @ a).sum(axis=0), X, A)
    assert report and report.checked == 15


def test_primitives_with_options():
    assert tg.gradcheck(tg.logsumexp, X, axis=1, keepdims=True)
    assert tg.gradcheck(tg.split, X, sections=[1], axis=1)


def test_whole_numbers_and_float32():
    """float32 is checked in float64, Tensors are taken as arrays, and whole numbers are not moved."""
    report = tg.gradcheck(tg.embedding, tg.Tensor(X.astype(np.float32)), np.array([0, 1, 1]))
    assert report and report.checked == 6


def test_a_function_that_forgets_its_input_is_found():
    report = tg.gradcheck(lambda x: tg.exp(x.detach()) + 0 * x, X)
    assert not report and report.hints == ["the gradient of input 0 is zero everywhere"]


def test_nothing_passed_in_is_changed():
    before = X.copy()
    x = X.copy()
    x.flags.writeable = False
    assert tg.gradcheck(tg.exp, x) and np.array_equal(x, before)


def test_a_surrogate_is_what_is_differentiated(register):
    """Rounding is flat, and its backward is by convention that of the identity."""

    def rounded(x):
        return np.round(x), ()

    made = register(rounded, lambda saved, g: (g,))
    assert not tg.gradcheck(made, X)
    made.surrogate(lambda saved, g: lambda x: g * x)
    assert tg.gradcheck(made, X)
    made.__dict__["surrogate"] = lambda saved, g: lambda x: (2 * g * x, -3 * g * x)  # terms are added up
    assert not tg.gradcheck(made, X)


def test_nothing_to_check_passes():
    report = tg.gradcheck(tg.exp, np.ones((0, 3)))
    assert report.passed and (report.checked, report.max_error) == (0, 0.0)
