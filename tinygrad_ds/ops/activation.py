"""Activations. sigma is the logistic function, sigma' = sigma (1 - sigma)."""

import math
from typing import Any, NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.broadcast import fit
from tinygrad_ds.primitive import primitive


def logistic(x: Array) -> Array:
    """sigma(x) = 1 / (1 + e^-x), with e^-|x| so that nothing overflows: for x < 0 it is e^x / (1 + e^x)."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1, e) / (1 + e)


class SigmoidSaved(NamedTuple):
    """The result is all that the slope needs."""

    y: Array


@primitive
def sigmoid(x):
    """y = sigma(x) = 1 / (1 + e^-x)."""
    y = logistic(x)
    return y, SigmoidSaved(y)


@sigmoid.backward
def sigmoid_backward(saved, g):
    """dy/dx = e^-x / (1 + e^-x)^2 = y (1 - y), since 1 - y = e^-x / (1 + e^-x)."""
    y = saved.y
    return (g * y * (1 - y),)


class SiluSaved(NamedTuple):
    """Both factors of y = x sigma(x)."""

    x: Array
    sigma: Array


@primitive
def silu(x):
    """y = x sigma(x), also called swish. Elfwing, Uchibe and Doya 2017."""
    sigma = logistic(x)
    return x * sigma, SiluSaved(x, sigma)


@silu.backward
def silu_backward(saved, g):
    """dy/dx = sigma + x sigma' = sigma + x sigma (1 - sigma) = sigma (1 + x (1 - sigma))."""
    x, sigma = saved
    return (g * sigma * (1 + x * (1 - sigma)),)


class GeluSaved(NamedTuple):
    """The input and the hyperbolic tangent in it."""

    x: Array
    t: Array


@primitive
def gelu(x):
    """y = x/2 (1 + t), t = tanh(u), u = c (x + k x^3), c = (2/pi)^(1/2), k = 0.044715.

    The tanh form of x Phi(x), Phi the normal distribution. Hendrycks and Gimpel 2016, section 2.
    """
    c, k = _constants(x)
    t = namespace(x).tanh(c * (x + k * x * x * x))
    return x / 2 * (1 + t), GeluSaved(x, t)


@gelu.backward
def gelu_backward(saved, g):
    """From the two factors, and tanh' = 1 - t^2:

    du/dx = c (1 + 3 k x^2)
    dy/dx = (1 + t) / 2  +  x/2 (1 - t^2) du/dx.
    """
    x, t = saved
    c, k = _constants(x)
    du = c * (1 + 3 * k * x * x)
    return (g * ((1 + t) / 2 + x / 2 * (1 - t * t) * du),)


def _constants(x: Array) -> tuple[Any, Any]:
    """c and k in the format of x: to NumPy, some numbers are too wide for a bfloat16."""
    return x.dtype.type(math.sqrt(2 / math.pi)), x.dtype.type(0.044715)


class ReluSaved(NamedTuple):
    """The result is positive exactly where x is."""

    y: Array


@primitive
def relu(x):
    """y = max(x, 0)."""
    y = namespace(x).maximum(x, 0)
    return y, ReluSaved(y)


@relu.backward
def relu_backward(saved, g):
    """dy/dx = 1 where x > 0, 0 where x < 0; at the kink x = 0 we take 0."""
    return (g * (saved.y > 0),)


class SoftmaxSaved(NamedTuple):
    """The probabilities and the axis along which they sum to 1."""

    y: Array
    axis: int


@primitive
def softmax(x, *, axis=-1):
    """y_i = e^x_i / sum_j e^x_j along `axis`: positive, and its sum is 1.

    The largest x is taken out of all exponents first, which changes nothing and keeps them from overflowing.
    """
    if not x.size:  # no largest entry, and none needed
        return x.copy(), SoftmaxSaved(x, axis)
    y = namespace(x).exp(x - x.max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return y, SoftmaxSaved(y, axis)


@softmax.backward
def softmax_backward(saved, g):
    """dy_i/dx_j = y_i ([i = j] - y_j), since x_j stands in the exponential of y_j and in the sum under all y.

        dL/dx_j = sum_i g_i y_i ([i = j] - y_j) = y_j (g_j - sum_i g_i y_i).
    The sum over j is 0, because sum_j y_j = 1: adding a constant to all x changes nothing.
    """
    y, axis = saved
    return (y * (g - (g * y).sum(axis=axis, keepdims=True)),)


class LogSoftmaxSaved(NamedTuple):
    """The result and the axis along which its exponentials sum to 1."""

    y: Array
    axis: int


@primitive
def log_softmax(x, *, axis=-1):
    """y_i = x_i - log sum_j e^x_j along `axis`, the logarithm of softmax without its underflow."""
    if not x.size:
        return x.copy(), LogSoftmaxSaved(x, axis)
    xp = namespace(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, LogSoftmaxSaved(y, axis)


@log_softmax.backward
def log_softmax_backward(saved, g):
    """dy_i/dx_j = [i = j] - p_j, since d(log sum_k e^x_k)/dx_j = e^x_j / sum_k e^x_k = p_j = e^y_j.

        dL/dx_j = sum_i g_i ([i = j] - p_j) = g_j - p_j sum_i g_i.
    The sum over j is 0, as for softmax.
    """
    y, axis = saved
    return (g - namespace(y).exp(y) * g.sum(axis=axis, keepdims=True),)


class SwigluSaved(NamedTuple):
    """Both halves of the product, and sigma(gate)."""

    gate: Array
    up: Array
    sigma: Array


@primitive
def swiglu(gate, up):
    """y = silu(gate) up = gate sigma(gate) up, the hidden layer of DeepSeek's MLPs. Shazeer 2020."""
    sigma = logistic(gate)
    return gate * sigma * up, SwigluSaved(gate, up, sigma)


@swiglu.backward
def swiglu_backward(saved, g):
    """A product of two factors, each with the other as its slope:

    dL/dgate = g up silu'(gate),   silu'(z) = sigma(z) (1 + z (1 - sigma(z)))   (see silu_backward)
    dL/dup   = g silu(gate) = g gate sigma(gate).
    """
    gate, up, sigma = saved
    slope = sigma * (1 + gate * (1 - sigma))
    return fit(g * up * slope, gate), fit(g * gate * sigma, up)
