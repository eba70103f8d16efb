"""The first steps of the ladder: entry by entry, broadcasting, sums, and moving entries about."""

import numpy as np

from lab.exercises.making import exercise


@exercise("add", hint="Each argument reaches y directly. Where it was repeated, its gradients are summed.")
def add(a, b):
    """y = a + b. The shapes broadcast; give each gradient the shape of its argument."""
    return a + b, (a.shape, b.shape)


@exercise("multiply", after=("add",), hint="Hold one factor fixed: y is linear in the other.")
def multiply(a, b):
    """y = a b. The shapes broadcast; give each gradient the shape of its argument."""
    return a * b, (a, b)


@exercise("divide", after=("multiply",), hint="y = a times 1/b, and the derivative of 1/b is -1/b^2.")
def divide(a, b):
    """y = a / b. The shapes broadcast; give each gradient the shape of its argument."""
    return a / b, (a, b)


@exercise("exp", hint="The exponential is its own derivative.")
def exp(x):
    """y = e^x, x of any shape."""
    y = np.exp(x)
    return y, y


@exercise("tanh", after=("exp", "divide"), hint="Write tanh as s / c, and see what 1 - y^2 is.")
def tanh(x):
    """y = tanh x = (e^x - e^-x) / (e^x + e^-x), x of any shape."""
    y = np.tanh(x)
    return y, y


@exercise("sigmoid", after=("exp", "divide"), hint="1 - y = e^-x / (1 + e^-x): the slope needs y alone.")
def sigmoid(x):
    """y = 1 / (1 + e^-x), x of any shape."""
    y = 1 / (1 + np.exp(-x))
    return y, y


@exercise("relu", hint="Where x is positive y is a copy of it, elsewhere a constant.")
def relu(x):
    """y = max(x, 0), x of any shape."""
    return np.maximum(x, 0), x


@exercise("silu", after=("sigmoid", "multiply"), hint="A product of x and sigma(x): both factors change.")
def silu(x):
    """y = x sigma(x), sigma(x) = 1 / (1 + e^-x), x of any shape."""
    sigma = 1 / (1 + np.exp(-x))
    return x * sigma, (x, sigma)


@exercise("gelu", after=("tanh", "multiply"), hint="A product again, and the chain rule through u.")
def gelu(x):
    """y = x/2 (1 + t), t = tanh(u), u = c (x + 0.044715 x^3), c = (2/pi)^(1/2)."""
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return x / 2 * (1 + t), (x, t)


@exercise("transpose", hint="Axis axes[i] of x is axis i of y. Which permutation leads back?")
def transpose(x, *, axes):
    """Axis i of y is axis axes[i] of x."""
    return x.transpose(axes), axes


@exercise("concatenate", hint="Each array is a stretch of y. Where does it begin, and where end?")
def concatenate(*arrays, axis):
    """The arrays one after another along the last axis. Return one gradient for each array."""
    return np.concatenate(arrays, axis=axis), [array.shape for array in arrays]


@exercise("broadcast_to", after=("add",), hint="One x stands in many places of y: add up what they get.")
def broadcast_to(x, *, shape):
    """x repeated along new axes in front, and along axes of size 1."""
    return np.broadcast_to(x, shape), x.shape


@exercise("sum", after=("add",), hint="Every x_i adds to one y, with slope 1. Mind the axes that are gone.")
def sum(x, *, axis, keepdims):
    """The sum over an axis, or over all where axis is None."""
    return x.sum(axis=axis, keepdims=keepdims), (x.shape, axis, keepdims)


@exercise("mean", after=("sum",), hint="As for the sum, but each x_i counts only 1/n.")
def mean(x, *, axis, keepdims):
    """The mean over an axis, or over all where axis is None."""
    return x.mean(axis=axis, keepdims=keepdims), (x.shape, axis, keepdims)


@exercise("max", after=("sum",), hint="Only the largest entry moves y. There are no ties in the cases.")
def max(x, *, axis, keepdims):
    """The largest entry along an axis, or of all where axis is None."""
    return x.max(axis=axis, keepdims=keepdims), (x, axis, keepdims)


@exercise("var", after=("mean", "multiply"), hint="The mean moves too; what does sum_i d_i do to its part?")
def var(x, *, axis, keepdims, ddof):
    """sum_i (x_i - mean)^2 / (n - ddof) over an axis, or over all where axis is None."""
    d = x - x.mean(axis=axis, keepdims=True)
    n = x.size if axis is None else x.shape[axis]
    return (d * d).sum(axis=axis, keepdims=keepdims) / (n - ddof), (d, n - ddof, axis, keepdims)


@exercise("embedding", after=("add",), hint="A row that was read twice reaches the loss twice.")
def embedding(weight, ids):
    """y = weight[ids]: a row of the table for each id. weight (V, d), ids (...) -> y (..., d).

    Return (grad_weight, None): whole numbers have no gradient.
    """
    return weight[ids], (weight.shape, ids)
