"""What the usual mistakes compute, so that the grader knows them when it sees them."""

import numpy as np

from lab.exercises.making import slip
from tinygrad_ds.ops.broadcast import sum_to


def spread(g, x, axis, keepdims):
    """g with the reduced axis back."""
    if axis is None:
        return np.reshape(g, (1,) * x.ndim)
    return g if keepdims else np.expand_dims(g, axis)


def soft(x, axis=-1):
    """softmax(x)."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def logistic(x):
    """sigma(x)."""
    return 1 / (1 + np.exp(-x))


@slip("divide", "term", "the gradient of b lacks a factor 1/b: the derivative of 1/b is -1/b^2, not -1/b")
def _(g, a, b):
    return sum_to(g / b, a.shape), sum_to(-g * a / b, b.shape)


@slip("tanh", "term", "the slope of tanh is 1 - y^2, not 1 - y")
def _(g, x):
    return (g * (1 - np.tanh(x)),)


@slip("tanh", "term", "the slope is written with x where it needs y = tanh(x)")
def _(g, x):
    return (g * (1 - x * x),)


@slip("sigmoid", "term", "the factor 1 - y is missing: the slope of sigma is y (1 - y)")
def _(g, x):
    return (g * logistic(x),)


@slip("sigmoid", "term", "the factor y is missing: the slope of sigma is y (1 - y)")
def _(g, x):
    return (g * (1 - logistic(x)),)


@slip("silu", "term", "only one factor of the product moves: the term x sigma'(x) is dropped")
def _(g, x):
    return (g * logistic(x),)


@slip("silu", "term", "only one factor of the product moves: the term sigma(x) is dropped")
def _(g, x):
    return (g * x * logistic(x) * (1 - logistic(x)),)


@slip("gelu", "term", "only one factor of the product moves: the term with tanh'(u) is dropped")
def _(g, x):
    return (g * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,)


@slip("gelu", "term", "the inner derivative lacks the cubic part: du/dx = c (1 + 3 k x^2)")
def _(g, x):
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return (g * ((1 + t) / 2 + x / 2 * (1 - t * t) * c),)


@slip("gelu", "term", "the factor 3 is missing where x^3 is differentiated")
def _(g, x):
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return (g * ((1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 0.044715 * x * x)),)


@slip("relu", "term", "the slope is 1 where x > 0; this multiplies by x or y instead")
def _(g, x):
    return (g * np.maximum(x, 0),)


@slip("relu", "mask", "the gradient passes where x < 0, and it should where x > 0")
def _(g, x):
    return (np.where(x < 0, g, 0),)


@slip("relu", "mask", "the gradient passes everywhere, but y is constant where x < 0")
def _(g, x):
    return (np.array(g),)


@slip("max", "mask", "every entry gets the gradient, but only the largest moved y")
def _(g, x, *, axis, keepdims):
    return (np.broadcast_to(spread(g, x, axis, keepdims), x.shape),)


@slip(
    "embedding", "repeats", "an id that occurs several times keeps only its last g: add them up (np.add.at)"
)
def _(g, weight, ids):
    grad = np.zeros_like(weight)
    grad[ids] = g
    return grad, None


@slip(
    "embedding", "repeats", "an id that occurs several times keeps only its first g: add them up (np.add.at)"
)
def _(g, weight, ids):
    grad = np.zeros_like(weight)
    grad[ids.reshape(-1)[::-1]] = g.reshape(-1, weight.shape[1])[::-1]
    return grad, None


@slip("swiglu", "term", "the slope of silu is taken for sigma(gate): the term gate sigma' is dropped")
def _(g, gate, up):
    return g * up * logistic(gate), g * gate * logistic(gate)


@slip("swiglu", "term", "the gradient of up lacks a factor: silu(gate) is gate sigma(gate)")
def _(g, gate, up):
    s = logistic(gate)
    return g * up * s * (1 + gate * (1 - s)), g * s


@slip("softmax", "jacobian", "the second term of the Jacobian is dropped: x_j stands under every y_i as well")
def _(g, x, *, axis):
    return (soft(x, axis) * g,)


@slip("softmax", "jacobian", "only the diagonal of the Jacobian is used: y (1 - y), but x_j moves all y_i")
def _(g, x, *, axis):
    y = soft(x, axis)
    return (g * y * (1 - y),)


@slip("softmax", "jacobian", "the sum in the Jacobian must be weighted by y: sum_i g_i y_i, not sum_i g_i")
def _(g, x, *, axis):
    return (soft(x, axis) * (g - g.sum(axis=axis, keepdims=True)),)


@slip("softmax", "jacobian", "the outer factor y of the Jacobian is missing")
def _(g, x, *, axis):
    return (g - (g * soft(x, axis)).sum(axis=axis, keepdims=True),)


@slip("softmax", "axis", "the sum runs over the last axis, not over the axis that forward was given")
def _(g, x, *, axis):
    y = soft(x, axis)
    return (y * (g - (g * y).sum(axis=-1, keepdims=True)),)


@slip("log_softmax", "axis", "the sum runs over the last axis, not over the axis that forward was given")
def _(g, x, *, axis):
    return (g - soft(x, axis) * g.sum(axis=-1, keepdims=True),)


@slip("log_softmax", "jacobian", "the second term is dropped: every y_i holds - logsumexp(x)")
def _(g, x, *, axis):
    return (np.array(g),)


@slip("log_softmax", "jacobian", "g is not summed: each x_j stands in the logsumexp of all y_i")
def _(g, x, *, axis):
    return (g - soft(x, axis) * g,)


@slip("log_softmax", "jacobian", "y is used where its exponential, the probability, belongs")
def _(g, x, *, axis):
    y = x - x.max(axis=axis, keepdims=True)
    y = y - np.log(np.exp(y).sum(axis=axis, keepdims=True))
    return (g - y * g.sum(axis=axis, keepdims=True),)


@slip("logsumexp", "jacobian", "the derivative is e^x_i / s; this is e^x_i without the division by the sum")
def _(g, x, *, axis, keepdims):
    return (np.exp(x) * spread(g, x, axis, keepdims),)


def losses(g, logits, targets, reduction, hot=True, mask=True, share=True):
    """The gradient of cross_entropy with parts left out."""
    counted = targets != -100
    p = soft(logits)
    if hot:
        p = p - (np.arange(logits.shape[-1]) == np.where(counted, targets, 0)[..., None])
    row = np.broadcast_to(g / counted.sum() if reduction == "mean" and share else g, counted.shape)
    return p * (row * counted if mask else row)[..., None], None


@slip("cross_entropy", "term", "the - [v = t] of the target's class is missing: this is p alone")
def _(g, logits, targets, *, reduction):
    return losses(g, logits, targets, reduction, hot=False)


@slip("cross_entropy", "mask", "rows whose target is -100 do not count, so their gradient is 0")
def _(g, logits, targets, *, reduction):
    return losses(g, logits, targets, reduction, mask=False)


@slip("cross_entropy", "scale", "the mean's 1/N is missing")
def _(g, logits, targets, *, reduction):
    return losses(g, logits, targets, reduction, share=False)


@slip("cross_entropy", "scale", "the mean is over the rows that count, not over all rows")
def _(g, logits, targets, *, reduction):
    grad, _ = losses(g, logits, targets, reduction)
    return grad * ((targets != -100).sum() / targets.size if reduction == "mean" else 1), None


@slip("var", "term", "the distance from the mean is missing: this uses x, not x - mean(x)")
def _(g, x, *, axis, keepdims, ddof):
    n = x.size if axis is None else x.shape[axis]
    return (2 * x * spread(g / (n - ddof), x, axis, keepdims),)


@slip("var", "scale", "n - ddof is what the forward divided by, not n")
def _(g, x, *, axis, keepdims, ddof):
    n = x.size if axis is None else x.shape[axis]
    return (2 * (x - x.mean(axis=axis, keepdims=True)) * spread(g / n, x, axis, keepdims),)
