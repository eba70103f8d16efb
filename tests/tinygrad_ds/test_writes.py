"""Writes in place: counted through Tensors, found by checksums behind their back."""

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.tinygrad_ds.test_tape import leaf


def assign(x):
    x[...] = 7.0


def assign_part(x):
    x[0] = 7.0


def add(x):
    x += 1


def subtract(x):
    x -= 1


def multiply(x):
    x *= 2


def divide(x):
    x /= 2


WRITES = [assign, assign_part, add, subtract, multiply, divide]


@pytest.mark.parametrize("write", WRITES)
def test_write_to_what_was_saved_is_found(write):
    x = leaf(1, 2)
    y = (x * x).sum()
    write(x)
    with pytest.raises(RuntimeError, match="its input 0 was written in place after 'multiply' was recorded"):
        y.backward()


@pytest.mark.parametrize("write", WRITES)
def test_write_to_a_result_is_found(write):
    y = tg.exp(leaf(1, 2))
    z = y.sum()
    write(y)
    with pytest.raises(RuntimeError, match="its result was written in place after 'exp'"):
        z.backward()


@pytest.mark.parametrize("write", WRITES)
def test_write_before_the_call_or_to_what_is_not_needed_is_no_fault(write):
    x, other = leaf(1, 2), leaf(3, 4)
    write(x)
    y = x.data.copy()
    product = (x * x + other).sum()
    write(other)
    product.backward()
    assert np.array_equal(x.grad, 2 * y) and other.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[1:],
        lambda x: x.reshape(2, 1),
        lambda x: tg.transpose(x),
        lambda x: tg.split(x, 2)[0],
        lambda x: x.detach(),
        lambda x: tg.Tensor(x),
    ],
)
def test_views_share_their_version(view):
    x = leaf(1, 2)
    other = view(x)
    y = (x * x).sum()
    with tg.no_grad():
        other += 1
    with pytest.raises(RuntimeError, match="'multiply'"):
        y.backward()


def test_copies_have_a_version_of_their_own():
    x = leaf(1, 2)
    y = (x * x).sum()
    copy = tg.Tensor(x.data.copy())
    copy += 1
    y.backward()
    assert x.grad.tolist() == [2, 4]


def test_the_memory_stays_the_same():
    x = leaf(1, 2)
    memory = x.data
    x += 1
    x[0] = 5
    assert x.data is memory and memory.tolist() == [5, 3]


def test_writes_are_not_differentiated():
    x, y = tg.Tensor([1.0, 2.0]), leaf(3, 4)
    for write in (lambda: x.__setitem__(0, y[0]), lambda: x.__iadd__(y)):
        with pytest.raises(RuntimeError, match="the value written needs a gradient"):
            write()
    with tg.no_grad():
        x += y
    x[0] = y.detach()[1]
    assert x.data.tolist() == [4, 6]


@pytest.mark.parametrize("where", ["input", "result"])
def test_anomaly_detection_finds_writes_through_data(where):
    with tg.using(detect_anomaly=True):
        x = leaf(1, 2)
        y = tg.exp(x) if where == "result" else tg.log(x)
        (y.data if where == "result" else x.data)[0] = 5
        name = "exp" if where == "result" else "log"
        with pytest.raises(
            RuntimeError, match=rf"array 0 of shape \(2,\) saved by '{name}' was changed behind the tape"
        ):
            y.sum().backward()


def test_without_anomaly_detection_nothing_is_watched():
    x = leaf(1, 2)
    y = tg.log(x).sum()
    x.data[0] = 5
    y.backward()
    assert x.grad.tolist() == [0.2, 0.5]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_anomaly_detection_names_the_first_gradient_that_is_not_finite(dtype):
    with tg.using(detect_anomaly=True), np.errstate(divide="ignore"):
        x = leaf(0, 1).astype(dtype)
        y = (tg.sqrt(x) * 2).sum()
        with pytest.raises(
            RuntimeError, match="backward of 'sqrt' gave a gradient that is not finite for input 0"
        ):
            y.backward()


def test_anomaly_detection_lets_right_ones_pass():
    with tg.using(detect_anomaly=True):
        x = tg.Tensor(np.arange(6.0).reshape(2, 3).T, requires_grad=True)
        (tg.exp(x)[::2, None] * np.zeros((2, 0, 2))).sum().backward()
        tg.exp(x).sum().backward()
    assert np.array_equal(x.grad, np.exp(x.data))
