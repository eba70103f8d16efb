"""Indexing: NumPy's results, gradients by counting, and the same bits each time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import STRATEGIES
from tests.tinygrad_ds.strategies import indexing  # noqa: F401 - fills STRATEGIES


def scatter_add(x, indices, updates, axis):
    """One update at a time."""
    y = x.copy()
    indices = np.broadcast_to(indices, updates.shape)
    for place in np.ndindex(updates.shape):
        target = list(place)
        target[axis] = indices[place]
        y[tuple(target)] += updates[place]
    return y


def take_along_axis(x, indices, axis):
    """NumPy's, for arrays that broadcast against each other first."""
    sides = [(n, k) if i != axis % x.ndim else (1, 1) for i, (n, k) in enumerate(zip(x.shape, indices.shape))]
    shared = np.broadcast_shapes(*zip(*sides))
    full_x, full = list(shared), list(shared)
    full_x[axis], full[axis] = x.shape[axis], indices.shape[axis]
    return np.take_along_axis(np.broadcast_to(x, full_x), np.broadcast_to(indices, full), axis)


SAME_AS_NUMPY = {
    "getitem": lambda x, index: x[index],
    "embedding": lambda weight, ids: np.take(weight, ids, axis=0),
    "take_along_axis": take_along_axis,
    "scatter_add": scatter_add,
}


@pytest.mark.parametrize("name", SAME_AS_NUMPY)
@settings(max_examples=50)
@given(data=st.data())
def test_results_are_numpys(name, data):
    case = data.draw(STRATEGIES[name])
    y, _ = tg.primitives[name].forward(*case.arrays, **case.options)
    np.testing.assert_allclose(y, SAME_AS_NUMPY[name](*case.arrays, **case.options), rtol=1e-14)


@given(data=st.data())
def test_gradient_counts_how_often_an_entry_was_read(data):
    """With g = 1 the gradient of x[index] is the number of times that each entry stands in the result."""
    case = data.draw(STRATEGIES["getitem"])
    (x,), index = case.arrays, case.options["index"]
    _, saved = tg.getitem.forward(x, index=index)
    read = np.arange(x.size).reshape(x.shape)[index]
    (grad,) = tg.getitem.backward(saved, np.ones(read.shape))
    assert np.array_equal(grad, np.bincount(read.reshape(-1), minlength=x.size).reshape(x.shape))


@given(data=st.data())
def test_embedding_is_indexing(data):
    case = data.draw(STRATEGIES["embedding"])
    weight, ids = case.arrays
    y, saved = tg.embedding.forward(weight, ids)
    g = np.random.default_rng(0).normal(size=y.shape)
    expected = np.zeros_like(weight)
    np.add.at(expected, ids, g)
    np.testing.assert_allclose(tg.embedding.backward(saved, g)[0], expected, rtol=1e-12, atol=1e-14)
    assert tg.embedding.backward(saved, g)[1] is None


def test_repeated_rows_add_up_to_the_same_bits():
    """Twice the same; and the bits of one row do not depend on what is read beside it."""
    rng = np.random.default_rng(0)
    weight, ids = np.zeros((7, 3), np.float32), rng.integers(0, 7, (50, 20))
    g = rng.normal(size=(50, 20, 3)).astype(np.float32)
    (grad, _), (again, _) = (tg.embedding.backward(tg.embedding.forward(weight, ids)[1], g) for _ in range(2))
    assert grad.tobytes() == again.tobytes() and grad.dtype == np.float32
    alone = np.where(ids == 3, ids, 0)
    (of_three, _) = tg.embedding.backward(tg.embedding.forward(weight, alone)[1], g)
    assert grad[3].tobytes() == of_three[3].tobytes()


def test_scatter_add_and_take_are_transposes():
    """<scatter(u), x> = <u, take(x)>: adding u at places and reading x there are each other's backward."""
    rng = np.random.default_rng(0)
    x, u, places = rng.normal(size=(4, 5)), rng.normal(size=(4, 7)), rng.integers(-5, 5, (4, 7))
    taken = tg.take_along_axis(x, places, axis=1).data
    scattered = tg.scatter_add(np.zeros((4, 5)), places, u, axis=1).data
    np.testing.assert_allclose((scattered * x).sum(), (u * taken).sum(), rtol=1e-13)
    _, saved = tg.take_along_axis.forward(x, places, axis=1)
    np.testing.assert_allclose(tg.take_along_axis.backward(saved, u)[0], scattered, rtol=1e-13)


def test_slices_are_views_and_arrays_copies():
    x = tg.Tensor(np.arange(6.0))
    assert np.shares_memory(x[1:3].data, x.data) and x[1:3].version is x.version
    copy = x[[1, 2]]
    assert not np.shares_memory(copy.data, x.data) and copy.version is not x.version


def test_tensors_as_indices():
    x = tg.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    rows, columns = tg.Tensor([0, 1, 1]), tg.Tensor([2, 0, 0])
    y = x[rows, columns]
    y.sum().backward()
    assert y.data.tolist() == [2, 3, 3] and x.grad.tolist() == [[0, 0, 1], [2, 0, 0]]


def test_scatter_add_leaves_x_alone():
    x = np.zeros(3)
    tg.scatter_add(x, np.array([0, 0, 2]), np.ones(3), axis=0)
    assert not x.any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: tg.embedding(x, np.array([0, 4])),
            IndexError,
            r"0 to 4 but weight has 4 rows: .* in 0\.\.3",
        ),
        (lambda x: tg.embedding(x, np.array([-1, 2])), IndexError, "-1 to 2 but weight has 4 rows"),
        (lambda x: tg.embedding(x, np.array([0.0])), TypeError, "ids are float64"),
        (lambda x: x[4], IndexError, "out of bounds"),
        (lambda x: tg.take_along_axis(x, np.array([0]), axis=0), ValueError, "1 axes but x has 2"),
        (lambda x: tg.take_along_axis(x, np.array([[9]]), axis=0), IndexError, "out of bounds"),
        (lambda x: tg.take_along_axis(x, np.array([[0]]), axis=2), np.exceptions.AxisError, "axis 2"),
    ],
)
def test_places_that_there_are_not(call, error, message):
    with pytest.raises(error, match=message):
        call(tg.Tensor(np.ones((4, 2))))
