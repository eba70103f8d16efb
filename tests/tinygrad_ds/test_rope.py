"""What follows from rope being a rotation, for both kernels and both layouts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import reals


def turned(x, angle, interleaved):
    return tg.rope(x, np.cos(angle), np.sin(angle), interleaved=interleaved).data


cases = st.tuples(reals((2, 3, 6)), reals((3, 3), low=-9.0, high=9.0), st.booleans())


@given(case=cases)
def test_norms_are_kept_and_turning_back_undoes_it(kernels, case):
    x, angle, interleaved = case
    y = turned(x, angle, interleaved)
    np.testing.assert_allclose((y * y).sum(axis=-1), (x * x).sum(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(turned(y, -angle, interleaved), x, rtol=1e-12, atol=1e-13)


@given(case=cases, more=reals((3, 3)))
def test_two_turns_are_one_by_the_sum(kernels, case, more):
    x, angle, interleaved = case
    twice = turned(turned(x, angle, interleaved), more, interleaved)
    np.testing.assert_allclose(twice, turned(x, angle + more, interleaved), rtol=1e-12, atol=1e-12)


@given(case=cases)
def test_gradient_is_turned_back(kernels, case):
    """R^T g: the gradient of y has the length of g, and turned forward again it is g."""
    x, angle, interleaved = case
    x = tg.Tensor(x, requires_grad=True)
    g = np.random.default_rng(0).normal(size=x.shape)
    tg.rope(x, np.cos(angle), np.sin(angle), interleaved=interleaved).backward(g)
    np.testing.assert_allclose(turned(x.grad, angle, interleaved), g, rtol=1e-12, atol=1e-13)


@given(case=cases)
def test_layouts_differ_by_a_permutation(kernels, case):
    x, angle, _ = case
    order = [0, 2, 4, 1, 3, 5]
    np.testing.assert_allclose(
        turned(x, angle, True)[..., order], turned(x[..., order], angle, False), rtol=1e-15
    )


@pytest.mark.parametrize("interleaved", [True, False])
def test_products_depend_on_the_distance_alone(kernels, interleaved):
    rng = np.random.default_rng(0)
    q, k, speed = rng.normal(size=8), rng.normal(size=8), rng.random(4)
    products = [
        turned(q, (7 + shift) * speed, interleaved) @ turned(k, (2 + shift) * speed, interleaved)
        for shift in (0, 1, 100)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-12)


def test_a_quarter_turn(kernels):
    x, angle = np.array([1.0, 2.0, 3.0, 4.0]), np.array([np.pi / 2, np.pi])
    np.testing.assert_allclose(turned(x, angle, True), [-2, 1, -3, -4], atol=1e-15)
    np.testing.assert_allclose(turned(x, angle, False), [-3, -2, 1, -4], atol=1e-15)


def test_errors_name_sizes():
    with pytest.raises(
        ValueError, match="x has 5 numbers in its last axis, cos 2 and sin 2: x needs an even"
    ):
        tg.rope(np.ones(5), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="x has 6 numbers in its last axis, cos 2 and sin 3"):
        tg.rope(np.ones(6), np.ones(2), np.ones(3))
