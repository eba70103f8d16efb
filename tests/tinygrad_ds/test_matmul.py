"""Products against NumPy, against each other, and what their errors say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.strategies.matmul import matmul_cases, spelt_subscripts


@given(case=matmul_cases())
def test_matmul_is_numpys(case):
    assert np.array_equal(tg.matmul.forward(*case.arrays)[0], np.matmul(*case.arrays))


@given(case=spelt_subscripts())
def test_einsum_is_numpys(case):
    """Implicit results, `...`, repeated labels and stretched axes mean what they mean in NumPy."""
    y, _ = tg.einsum.forward(*case.arrays, **case.options)
    expected = np.einsum(case.options["subscripts"], *case.arrays)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def leaves(*shapes):
    rng = np.random.default_rng(len(shapes))
    return [tg.Tensor(rng.normal(size=shape), requires_grad=True) for shape in shapes]


AS_PRODUCTS = [
    ("ij,jk->ik", [(2, 3), (3, 4)], lambda a, b: a @ b),
    ("ij,kj->ki", [(2, 3), (4, 3)], lambda a, b: b @ a.transpose()),
    ("bik,bjk->bij", [(2, 3, 4), (2, 5, 4)], lambda a, b: a @ b.swapaxes(-1, -2)),
    ("...ij,...jk", [(2, 1, 3, 4), (5, 4, 2)], lambda a, b: a @ b),
    ("i,i->", [(4,), (4,)], lambda a, b: (a * b).sum()),
    ("i,j->ij", [(4,), (3,)], lambda a, b: a.reshape(4, 1) * b),
    ("ii->i", [(3, 3)], lambda a: a[np.arange(3), np.arange(3)]),
    ("ii", [(3, 3)], lambda a: a[np.arange(3), np.arange(3)].sum()),
    ("ij->j", [(3, 2)], lambda a: a.sum(axis=0)),
    ("ijk->kij", [(2, 3, 4)], lambda a: a.transpose(2, 0, 1)),
    ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 2)], lambda a, b, c: a @ b @ c),
    ("bhqr,btr->bhqt", [(2, 3, 4, 5), (2, 6, 5)], lambda a, b: a @ b.swapaxes(-1, -2).reshape(2, 1, 5, 6)),
]


@pytest.mark.parametrize(("subscripts", "shapes", "product"), AS_PRODUCTS, ids=[c[0] for c in AS_PRODUCTS])
def test_einsum_equals_products_and_transposes(subscripts, shapes, product):
    first, second = leaves(*shapes), leaves(*shapes)
    y, expected = tg.einsum(subscripts, *first), product(*second)
    np.testing.assert_allclose(y.data, expected.data, rtol=1e-12)
    u = np.random.default_rng(9).normal(size=y.shape)
    y.backward(u)
    expected.backward(u)
    for a, b in zip(first, second):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-12, atol=1e-14)


@given(data=st.data())
def test_gradient_of_a_product_is_homogeneous(data):
    """y is linear in every operand, so <x, dL/dx> is the same for all of them: <g, y>."""
    case = data.draw(st.one_of(matmul_cases(), spelt_subscripts()))
    product = tg.einsum if "subscripts" in case.options else tg.matmul
    y, saved = product.forward(*case.arrays, **case.options)
    g = np.asarray(np.random.default_rng(1).normal(size=np.shape(y)))
    for x, grad in zip(case.arrays, product.backward(saved, g)):
        np.testing.assert_allclose((x * grad).sum(), (g * y).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["matmul", "linear", "einsum"])
def test_the_two_halves_of_the_backward_make_the_whole(name):
    x, weight = np.ones((2, 3, 4)), np.arange(20.0).reshape(5, 4)
    weight = weight.T if name == "matmul" else weight
    options = {"subscripts": "...i,oi->...o"} if name == "einsum" else {}
    product = tg.primitives[name]
    y, saved = product.forward(x, weight, **options)
    g = np.random.default_rng(0).normal(size=y.shape)
    grad_x, nothing = product.backward_input(saved, g)
    missing, grad_weight = product.backward_weight(saved, g)
    assert nothing is None and missing is None
    whole = product.backward(saved, g)
    assert np.array_equal(whole[0], grad_x) and np.array_equal(whole[1], grad_weight)


def test_mixed_dtypes_promote_and_gradients_come_back_in_their_own():
    a, b = np.ones((2, 3), dtype=np.float32), np.ones((3, 2))
    for product, options in ((tg.matmul, {}), (tg.einsum, {"subscripts": "ij,jk"})):
        y, saved = product.forward(a, b, **options)
        assert y.dtype == np.float64
        assert [grad.dtype for grad in product.backward(saved, y)] == [np.float32, np.float64]
        y, saved = product.forward(np.ones((2, 3), dtype=np.int64), b, **options)
        grad_a, grad_b = product.backward(saved, y)
        assert grad_a is None and grad_b.dtype == np.float64


def test_errors_name_shapes():
    with pytest.raises(ValueError, match=r"linear: x has shape \(2, 3\) but the weight \(5, 4\) takes 4"):
        tg.linear(np.ones((2, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="names 2 operands but got 1"):
        tg.einsum("ij,jk", np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"'ijk' does not name the axes of shape \(2, 3\)"):
        tg.einsum("ijk->i", np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"'i' does not name the axes of shape \(2, 3\)"):
        tg.einsum("i->i", np.ones((2, 3)))
    with pytest.raises(ValueError, match="the result must have the axes of '...' too"):
        tg.einsum("...i->i", np.ones((2, 3)))
