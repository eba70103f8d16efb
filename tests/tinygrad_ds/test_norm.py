"""What follows from the mathematics of rmsnorm, for both kernels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import reals


def gradients(x, weight, g, eps):
    x, weight = tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True)
    y = tg.rmsnorm(x, weight, eps=eps)
    y.backward(g)
    return y.data, x.grad, weight.grad


@given(data=st.data())
def test_gradient_is_orthogonal_to_x(kernels, data):
    """Without eps, scaling x changes nothing."""
    d = data.draw(st.integers(1, 20))
    x, weight, g = (data.draw(reals(shape)) for shape in ((3, d), (d,), (3, d)))
    y, grad_x, _ = gradients(x, weight, g, eps=0.0)
    np.testing.assert_allclose((grad_x * x).sum(axis=-1), 0, atol=1e-13)
    np.testing.assert_allclose(gradients(-7 * x, weight, g, eps=0.0)[0], -y, rtol=1e-13)


@given(data=st.data())
def test_gradient_along_weight_is_the_loss_itself(kernels, data):
    """y is linear in the weight: <w, dL/dw> = <g, y>. With w = 1 and no eps, a row of y has mean square 1."""
    x, weight, g = (data.draw(reals(shape)) for shape in ((3, 8), (8,), (3, 8)))
    y, _, grad_weight = gradients(x, weight, g, eps=1e-6)
    np.testing.assert_allclose((weight * grad_weight).sum(), (g * y).sum(), rtol=1e-12, atol=1e-12)
    y, _, _ = gradients(x, np.ones(8), g, eps=0.0)
    np.testing.assert_allclose((y * y).mean(axis=-1), 1, rtol=1e-13)


def test_eps_bounds_what_a_row_of_zeros_gives(kernels):
    """At x = 0, y = x w / sqrt(eps) to first order."""
    y, grad_x, grad_weight = gradients(np.zeros((1, 2)), np.array([2.0, 3.0]), np.ones((1, 2)), eps=0.25)
    assert np.array_equal(y, [[0, 0]]) and np.array_equal(grad_weight, [0, 0])
    np.testing.assert_allclose(grad_x, [[4, 6]], rtol=1e-15)


def test_pencil_and_paper(kernels):
    """x = (3, 4) has mean square 12.5."""
    y, grad_x, grad_weight = gradients(np.array([[3.0, 4.0]]), np.ones(2), np.array([[1.0, 0.0]]), eps=0.0)
    r = 12.5**-0.5
    np.testing.assert_allclose(y, [[3 * r, 4 * r]], rtol=1e-15)
    np.testing.assert_allclose(grad_x, [[r * (1 - 9 / 25), -r * 12 / 25]], rtol=1e-14)
    np.testing.assert_allclose(grad_weight, [3 * r, 0], rtol=1e-15)


def test_a_weight_of_zero_or_without_bounds_takes_nothing_from_the_gradients():
    """The twin finds x_hat again as y / w where it can; the weight's gradient is there all the same."""
    rng = np.random.default_rng(2)
    x, g = rng.normal(size=(2, 5, 4))
    for weight in ([1.0, 0.0, -2.0, 3.0], [1.0, 1e-200, 2.0, 3.0], [1e200, 1.0, 2.0, 3.0], [0.5, -1, 2, 9]):
        both = tg.rmsnorm, tg.rmsnorm.fused["cpu"]
        expected, given = (pair.backward(pair.forward(x, np.array(weight))[1], g) for pair in both)
        for a, b in zip(given, expected):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_the_twin_keeps_nothing_beside_its_result():
    """What reads y keeps it, so this costs no memory but for a number a row."""
    x = np.random.default_rng(3).normal(size=(50, 8))
    y, saved = tg.rmsnorm.fused["cpu"].forward(x, np.full(8, 0.7))
    others = [array for array in saved if not np.shares_memory(array, y)]
    assert sum(array.size for array in others) == 50 + 2 * 8
