"""Primitives that move entries: NumPy's results and views, and gradients that find their way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import STRATEGIES
from tests.tinygrad_ds.strategies import shape  # noqa: F401 - fills STRATEGIES

SAME_AS_NUMPY = {
    "reshape": np.reshape,
    "squeeze": np.squeeze,
    "expand_dims": np.expand_dims,
    "transpose": np.transpose,
    "broadcast_to": np.broadcast_to,
    "concatenate": lambda *arrays, axis: np.concatenate(arrays, axis=axis),
    "stack": lambda *arrays, axis: np.stack(arrays, axis=axis),
    "split": lambda x, sections, axis: tuple(np.split(x, sections, axis=axis)),
    "pad": lambda x, pad_width, value: np.pad(x, pad_width, constant_values=value),
}
REARRANGE = ["reshape", "squeeze", "expand_dims", "transpose", "concatenate", "stack"]


@pytest.mark.parametrize("name", SAME_AS_NUMPY)
@settings(max_examples=30)
@given(data=st.data())
def test_results_are_numpys(name, data):
    case = data.draw(STRATEGIES[name])
    given_result, _ = tg.primitives[name].forward(*case.arrays, **case.options)
    expected = SAME_AS_NUMPY[name](*case.arrays, **case.options)
    if name == "split":
        assert len(given_result) == len(expected)
        assert all(map(np.array_equal, given_result, expected))
    else:
        assert np.array_equal(given_result, expected)


@pytest.mark.parametrize("name", REARRANGE)
@settings(max_examples=30)
@given(data=st.data())
def test_backward_of_the_result_is_the_input(name, data):
    """Where every x goes to one place, backward is the way back: backward(forward(x)) = x."""
    case = data.draw(STRATEGIES[name])
    y, saved = tg.primitives[name].forward(*case.arrays, **case.options)
    back = tg.primitives[name].backward(saved, y)
    assert all(map(np.array_equal, back, case.arrays))


@given(data=st.data())
def test_copies_are_counted(data):
    """x gets as many ones as there are copies of it."""
    case = data.draw(STRATEGIES["broadcast_to"])
    y, saved = tg.broadcast_to.forward(*case.arrays, **case.options)
    (grad,) = tg.broadcast_to.backward(saved, np.ones(y.shape))
    (x,) = case.arrays
    assert np.array_equal(grad, np.full(x.shape, y.size / max(x.size, 1)))


@given(data=st.data())
def test_what_surrounds_x_gets_nothing(data):
    case = data.draw(STRATEGIES["pad"])
    y, saved = tg.pad.forward(*case.arrays, **case.options)
    assert np.array_equal(tg.pad.backward(saved, y)[0], *case.arrays)


def test_views_where_numpy_has_them():
    x = tg.Tensor(np.arange(6.0).reshape(2, 3))
    parts = tg.split(x, 3, axis=1)
    for y in (*parts, x.reshape(6), x.T, tg.squeeze(x), tg.expand_dims(x, 0), tg.broadcast_to(x, (4, 2, 3))):
        assert np.shares_memory(y.data, x.data) and y.version is x.version


def test_parts_without_a_gradient_count_as_zero():
    x = tg.Tensor(np.arange(5.0), requires_grad=True)
    _, middle, _ = tg.split(x, [1, 3])
    (middle * middle).sum().backward()
    assert x.grad.tolist() == [0, 2, 4, 0, 0]


def test_entries_in_two_parts_get_both_gradients():
    x = tg.Tensor(np.arange(4.0), requires_grad=True)
    parts = tg.split(x, [3, 1])  # x[:3], x[3:1], x[1:]
    (10 * parts[0].sum() + parts[1].sum() + parts[2].sum()).backward()
    assert x.grad.tolist() == [10, 11, 11, 1]


def test_one_part_is_a_tuple_of_one():
    x = tg.Tensor(np.arange(4.0), requires_grad=True)
    parts = tg.split(x, 1)
    assert isinstance(parts, tuple) and len(parts) == 1
    parts[0].sum().backward()
    assert x.grad.tolist() == [1] * 4


def test_lists_of_tensors_and_numbers_join():
    x = tg.Tensor(np.ones(2, np.float32), requires_grad=True)
    y = tg.concatenate([x, np.zeros(1, np.float32), x], 0)
    (y * np.arange(5, dtype=np.float32)).sum().backward()
    assert y.dtype == np.float32 and x.grad.tolist() == [3, 5]
    assert tg.stack([x[0], 2.0, 3]).data.tolist() == [1, 2, 3]


def test_joining_undoes_promotion():
    narrow = tg.Tensor(np.ones(1, np.float32), requires_grad=True)
    wide, whole = tg.Tensor(np.ones(1), requires_grad=True), np.ones(1, np.int64)
    for join in (tg.concatenate, tg.stack):
        join([narrow, wide, whole]).sum().backward()
        assert (narrow.grad.dtype, wide.grad.dtype) == (np.float32, np.float64)
        _, saved = join.forward(narrow.data, wide.data, whole)
        g = np.ones(3 if join is tg.concatenate else (3, 1))
        assert join.backward(saved, g)[2] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tg.split(x, 4, axis=1), "6 entries along axis 1 cannot be split into 4 equal parts"),
        (lambda x: tg.split(x, 0, axis=1), "into 0 equal parts"),
        (lambda x: tg.reshape(x, (5, 3)), "cannot reshape"),
        (lambda x: tg.concatenate([x, x[:, :2]]), "must match exactly"),
        (lambda x: tg.stack([x, x[0]]), "same shape"),
        (lambda x: tg.transpose(x, (0, 0)), "repeated axis"),
        (lambda x: tg.transpose(x, (0,)), "axes"),
        (lambda x: tg.broadcast_to(x, (3, 3)), "broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tg.Tensor(np.ones((2, 6))))
