"""Elementwise primitives. For y = f(x), entry by entry, dL/dx = g f'(x) with g = dL/dy: a line each.

With two arguments the shapes broadcast, and `fit` sums each gradient back to its argument's shape.
"""

from typing import NamedTuple

import numpy as np

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.dtypes import dtype as as_dtype
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.primitive import primitive


class FormsSaved(NamedTuple):
    """Where the derivative does not depend on the values."""

    a: Form
    b: Form


class OperandsSaved(NamedTuple):
    """Where the derivative is written with the arguments."""

    a: Array
    b: Array


class InputSaved(NamedTuple):
    """Where the derivative is written with x."""

    x: Array


class ResultSaved(NamedTuple):
    """Where the derivative is shorter written with y."""

    y: Array


@primitive
def add(a, b):
    """Sum: y = a + b."""
    return a + b, FormsSaved(form(a), form(b))


@add.backward
def add_backward(saved, g):
    """dy/da = 1 and dy/db = 1, so both get g."""
    return fit(g, saved.a), fit(g, saved.b)


@primitive
def subtract(a, b):
    """Difference: y = a - b."""
    return a - b, FormsSaved(form(a), form(b))


@subtract.backward
def subtract_backward(saved, g):
    """dy/da = 1 and dy/db = -1."""
    return fit(g, saved.a), fit(-g, saved.b)


@primitive
def multiply(a, b):
    """Product: y = a b."""
    return a * b, OperandsSaved(a, b)


@multiply.backward
def multiply_backward(saved, g):
    """dy/da = b and dy/db = a."""
    a, b = saved
    return fit(g * b, a), fit(g * a, b)


class DivideSaved(NamedTuple):
    """The quotient stands in for the dividend."""

    y: Array
    a: Form
    b: Array


@primitive
def divide(a, b):
    """Quotient: y = a / b."""
    y = a / b
    return y, DivideSaved(y, form(a), b)


@divide.backward
def divide_backward(saved, g):
    """dy/da = 1 / b and dy/db = -a / b^2 = -y / b."""
    y, a, b = saved
    grad_a = g / b
    return fit(grad_a, a), fit(-grad_a * y, b)


class PowerSaved(NamedTuple):
    """The result is a factor of dy/db."""

    y: Array
    a: Array
    b: Array


@primitive
def power(a, b):
    """y = a^b, and 0^0 = 1. Negative a needs integer b; otherwise y is NaN, as in NumPy."""
    y = namespace(a).power(a, b)
    return y, PowerSaved(y, a, b)


@power.backward
def power_backward(saved, g):
    """dy/da = b a^(b-1) and dy/db = y ln a.

    a^0 = 1 for every a, so dy/da = 0 where b = 0, also at a = 0, where b a^(b-1) would be 0 times infinity.
    For 0 < b < 1 and a = 0 the slope dy/da is infinite, and so is the gradient.

    For b > 0 the limit of y ln a at a = 0 is 0. For a < 0 y exists at integer b only, so there is no slope
    in b: it counts as 0. Hence dy/db = 0 unless a > 0.
    """
    y, a, b = saved
    xp = namespace(y)
    grad_a = g * b * xp.power(a, xp.where(b == 0, 0, b - 1))
    grad_b = xp.where(a > 0, g * y * xp.log(xp.where(a > 0, a, 1)), 0)
    return fit(grad_a, a), fit(grad_b, b)


@primitive
def maximum(a, b):
    """y = max(a, b), NaN if either is."""
    return namespace(a).maximum(a, b), OperandsSaved(a, b)


@maximum.backward
def maximum_backward(saved, g):
    """The larger one is y and gets g. At a tie each gets g / 2: exchanging a and b changes nothing."""
    a, b = saved
    return fit(_share(g, a > b, a == b), a), fit(_share(g, b > a, a == b), b)


@primitive
def minimum(a, b):
    """y = min(a, b), NaN if either is."""
    return namespace(a).minimum(a, b), OperandsSaved(a, b)


@minimum.backward
def minimum_backward(saved, g):
    """The smaller one is y and gets g. At a tie each gets g / 2: exchanging a and b changes nothing."""
    a, b = saved
    return fit(_share(g, a < b, a == b), a), fit(_share(g, b < a, a == b), b)


def _share(g: Array, chosen: Array, tie: Array) -> Array:
    """All of g where chosen, half of it at a tie, else nothing."""
    xp = namespace(g)
    return xp.where(chosen, g, xp.where(tie, g / 2, 0))


@primitive
def negative(x):
    """The other sign: y = -x."""
    return -x, ()


@negative.backward
def negative_backward(saved, g):
    """dy/dx = -1."""
    return (-g,)


@primitive
def exp(x):
    """Exponential: y = e^x."""
    y = namespace(x).exp(x)
    return y, ResultSaved(y)


@exp.backward
def exp_backward(saved, g):
    """dy/dx = e^x = y."""
    return (g * saved.y,)


@primitive
def log(x):
    """Natural logarithm: y = ln x."""
    return namespace(x).log(x), InputSaved(x)


@log.backward
def log_backward(saved, g):
    """dy/dx = 1 / x."""
    return (g / saved.x,)


@primitive
def sqrt(x):
    """Square root: y = x^(1/2)."""
    y = namespace(x).sqrt(x)
    return y, ResultSaved(y)


@sqrt.backward
def sqrt_backward(saved, g):
    """dy/dx = 1/2 x^(-1/2) = 1 / (2 y), infinite at x = 0."""
    return (g / (2 * saved.y),)


@primitive
def rsqrt(x):
    """One over the square root: y = x^(-1/2)."""
    y = 1 / namespace(x).sqrt(x)
    return y, ResultSaved(y)


@rsqrt.backward
def rsqrt_backward(saved, g):
    """dy/dx = -1/2 x^(-3/2) = -y^3 / 2."""
    y = saved.y
    return (g * y * y * y / -2,)


@primitive
def tanh(x):
    """y = (e^x - e^-x) / (e^x + e^-x)."""
    y = namespace(x).tanh(x)
    return y, ResultSaved(y)


@tanh.backward
def tanh_backward(saved, g):
    """y = s / c with s' = c and c' = s, so dy/dx = (c c - s s) / c^2 = 1 - y^2."""
    y = saved.y
    return (g * (1 - y * y),)


@primitive
def abs(x):
    """Absolute value: y = |x|."""
    return namespace(x).abs(x), InputSaved(x)


@abs.backward
def abs_backward(saved, g):
    """dy/dx = sign(x); at the kink x = 0 we take 0, the middle of [-1, 1]."""
    return (g * namespace(saved.x).sign(saved.x),)


class WhereSaved(NamedTuple):
    """The mask, and what the gradients must look like."""

    mask: Array
    a: Form
    b: Form


@primitive
def where(mask, a, b):
    """y = a where mask holds, else b; all three broadcast."""
    return namespace(a).where(mask, a, b), WhereSaved(mask, form(a), form(b))


@where.backward
def where_backward(saved, g):
    """y is a copy of a or of b, which gets g there; the other gets 0, and the mask nothing."""
    mask, a, b = saved
    xp = namespace(g)
    return None, fit(xp.where(mask, g, 0), a), fit(xp.where(mask, 0, g), b)


class ClipSaved(NamedTuple):
    """Where x lay within the bounds."""

    inside: Array


@primitive
def clip(x, *, low=None, high=None):
    """y = min(max(x, low), high). A bound is a number, an array that broadcasts to x's shape, or None."""
    xp = namespace(x)
    y, inside = x, xp.ones(x.shape, dtype=bool)
    if low is not None:
        low = _bound(low, x.dtype)
        y, inside = xp.maximum(y, low), inside & (x >= low)
    if high is not None:
        high = _bound(high, x.dtype)
        y, inside = xp.minimum(y, high), inside & (x <= high)
    return y, ClipSaved(inside)


@clip.backward
def clip_backward(saved, g):
    """dy/dx = 1 inside and 0 outside. An x on a bound is left as it is, so it counts as inside: 1."""
    return (g * saved.inside,)


def _bound(bound, kind):
    """A number in the format of x, for an np.float64, and to a bfloat16 any number, would promote it."""
    return kind.type(bound) if isinstance(bound, int | float) and is_floating(kind) else bound


class AstypeSaved(NamedTuple):
    """The number format of x."""

    dtype: np.dtype


@primitive
def astype(x, *, dtype):
    """y = x in another number format: a copy, rounded where the format is narrower."""
    return x.astype(as_dtype(dtype)), AstypeSaved(x.dtype)


@astype.backward
def astype_backward(saved, g):
    """Rounding is a staircase around y = x. Its slope counts as that of the line: g, cast back."""
    return (g.astype(saved.dtype, copy=False),)
