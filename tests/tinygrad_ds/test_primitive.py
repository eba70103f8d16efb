"""Primitives as they are called: several results, wrong backwards, wrong calls."""

from typing import NamedTuple

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.tinygrad_ds.test_tape import leaf


class Pair(NamedTuple):
    """Two results of which the second has no gradient of its own."""

    total: np.ndarray
    places: np.ndarray


def test_missing_gradients_are_none(register):
    seen = []

    def two(x):
        return Pair(x * 2, np.arange(x.size)), ()

    def two_backward(saved, g):
        seen.append(g)
        return (g[0] * 2,)

    result = register(two, two_backward)(leaf(1, 2))
    assert isinstance(result, Pair) and isinstance(result.places, tg.Tensor)
    assert result.total.requires_grad and not result.places.requires_grad
    result.total.backward(np.ones(2))
    assert seen[0][1] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda saved, g: (g.sum(),), r"'f' gave a gradient float64\(\) for input 0, which is float64\(2,\)"),
        (lambda saved, g: (g.astype("float32"),), r"float32\(2,\) for input 0, which is float64"),
        (lambda saved, g: (g, g), "'f' has 1 inputs but its backward gave 2 gradients"),
    ],
)
def test_wrong_backwards_are_reported(register, wrong, message):
    def f(x):
        return x * 1, ()

    with pytest.raises(RuntimeError, match=message):
        register(f, wrong)(leaf(1, 2)).backward(np.ones(2))


def test_two_primitives_of_one_name_are_refused(register):
    with pytest.raises(ValueError, match="'exp' is registered already"):

        def exp(x):
            return x, ()

        register(exp, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tg.sum(x, 0, True, 1), "sum got 4 arguments but takes 1 arrays"),
        (lambda x: tg.sum(x, 0, axis=0), "got axis twice"),
        (lambda x: tg.sum(x, axes=0), "sum has no option 'axes': it knows axis, keepdims"),
        (lambda x: tg.exp(x, axis=0), "exp has no option 'axis': it knows none"),
        (lambda x: tg.concatenate([]), "concatenate needs at least one array"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call(leaf(1, 2))
