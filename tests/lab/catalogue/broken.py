"""Answers that break something: NaN, damage, wrong types."""

import numpy as np

from tests.lab import answers
from tests.lab.catalogue.making import wrong


@wrong("sigmoid", "nan")
def nan(y, g):
    return (g * np.log(-y),)


@wrong("exp", "zero")
def zero(y, g):
    return (np.zeros_like(y),)


@wrong("exp", "damage")
def writes_into_g(y, g):
    g *= y
    return (g,)


@wrong("softmax", "damage")
def writes_into_saved(saved, g):
    y, axis = saved
    y *= g - (g * y).sum(axis=axis, keepdims=True)
    return (y,)


@wrong("multiply", "damage")
def writes_into_inputs(saved, g):
    a, b = saved
    grads = answers.multiply(saved, g)
    a[...] = 0
    return grads


@wrong("softmax", "crash")
def division_by_zero(saved, g):
    return 1 // 0


@wrong("softmax", "crash")
def wrong_name(saved, g):
    return (undefined_name * g,)  # noqa: F821


@wrong("exp", "crash")
def endless_recursion(y, g):
    return endless_recursion(y, g)


@wrong("exp", "memory")
def too_much(y, g):
    raise MemoryError


@wrong("linear", "count")
def one_gradient_short(saved, g):
    return answers.linear(saved, g)[:2]


@wrong("tanh", "shape")
def words(y, g):
    return ("g (1 - y^2)",)


@wrong("tanh", "shape")
def flattened(y, g):
    return (answers.tanh(y, g)[0].reshape(-1, 1),)
