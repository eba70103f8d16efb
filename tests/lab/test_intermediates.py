"""Watching a function changes nothing about it, and shows every step."""

import numpy as np
import pytest

import tinygrad_ds as tg
from lab.cases import MAKERS, worked
from lab.checking import gradients_for
from lab.explanation import backward_functions
from lab.intermediates import watch


def parts(value):
    return [v for v in (value if isinstance(value, tuple) else (value,)) if v is not None]


@pytest.mark.parametrize("name", sorted(set(MAKERS) & set(tg.primitives)))
def test_a_watched_function_gives_the_same_bits(name):
    primitive = tg.primitives[name]
    arrays, options = worked(MAKERS[name])
    y, saved = primitive.forward(*arrays, **options)
    watched = watch(primitive.forward, *arrays, **options)
    assert all(np.array_equal(a, b) for a, b in zip(parts(y), parts(watched.result[0]), strict=True))
    for function in backward_functions(primitive):
        sent = gradients_for(y)
        grads = watch(function, saved, sent)
        expected = parts(function(saved, sent))
        assert all(np.array_equal(a, b) for a, b in zip(expected, parts(grads.result), strict=True))
        assert grads.lines


def test_every_operation_of_a_line_is_there():
    (y, _), lines = watch(tg.softmax.forward, np.array([1.0, 2.0]), axis=-1)
    values = {value.source: value.value for line in lines for value in line.values}
    assert np.array_equal(values["x - x.max(axis=axis, keepdims=True)"], [-1.0, 0.0])
    assert np.array_equal(values["y"], y)


def test_a_name_shows_what_it_was_then():
    """`y` is divided in place later: the first line must show it undivided."""
    _, lines = watch(tg.softmax.forward, np.array([0.0, 0.0]), axis=-1)
    seen = [value.value for line in lines for value in line.values if value.source == "y"]
    assert np.array_equal(seen[0], [1.0, 1.0]) and np.array_equal(seen[-1], [0.5, 0.5])


def test_helpers_stand_further_in():
    _, lines = watch(tg.rope.forward, np.ones((1, 2)), np.ones((1, 1)), np.zeros((1, 1)), interleaved=True)
    assert {line.depth for line in lines} == {0, 1, 2}
    assert any(line.source.startswith("y_a[...] = ") for line in lines)
