"""The middle of the ladder: products of matrices, softmax and what is built on it, the parts of a network."""

import numpy as np

from lab.cases import Case, Draw
from lab.exercises.making import exercise


@exercise("matmul", after=("sum", "transpose"), hint="Write Y_ij = sum_k A_ik B_kj, and look for A_ik in it.")
def matmul(a, b):
    """Y = A B for the last two axes, a (.., n, k), b (.., k, m); axes in front broadcast."""
    return a @ b, (a, b)


def with_bias(draw: Draw) -> Case:
    """Cases of linear that have a bias, its rows in any number of axes."""
    inner, outer = draw.size("d"), draw.size("out")
    return Case((draw.reals(*draw.lead(), inner), draw.reals(outer, inner), draw.reals(outer)))


@exercise("linear", after=("matmul",), hint="Weight and bias are used for every row: sum.", maker=with_bias)
def linear(x, weight, bias):
    """y = x W^T + b. x (..., in), weight (out, in), bias (out,) -> y (..., out)."""
    return x @ weight.T + bias, (x, weight)


@exercise("swiglu", after=("silu",), hint="Two factors: silu(gate), and up.")
def swiglu(gate, up):
    """y = gate sigma(gate) up, all of one shape."""
    sigma = 1 / (1 + np.exp(-gate))
    return gate * sigma * up, (gate, up, sigma)


@exercise("logsumexp", after=("exp", "sum"), hint="The derivative of ln s is 1/s; that of s by x_i is e^x_i.")
def logsumexp(x, *, axis, keepdims):
    """ln sum_i e^x_i over an axis, or over all where axis is None."""
    y = np.log(np.exp(x).sum(axis=axis, keepdims=True))
    return (y if keepdims else y.squeeze(axis=axis)), (x, y, axis, keepdims)


@exercise("softmax", after=("logsumexp",), hint="x_j stands in the numerator of y_j, and under every y_i.")
def softmax(x, *, axis):
    """y_i = e^x_i / sum_j e^x_j along an axis."""
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    y = y / y.sum(axis=axis, keepdims=True)
    return y, (y, axis)


@exercise("log_softmax", after=("softmax",), hint="y_i = x_i - logsumexp(x): one term is simple.")
def log_softmax(x, *, axis):
    """y_i = x_i - ln sum_j e^x_j along an axis."""
    z = x - x.max(axis=axis, keepdims=True)
    y = z - np.log(np.exp(z).sum(axis=axis, keepdims=True))
    return y, (y, axis)


@exercise("cross_entropy", after=("log_softmax",), hint="It is p - [v = t], times what arrives at the row.")
def cross_entropy(logits, targets, *, reduction):
    """l = -ln softmax(z)[t], row by row: their mean, their sum, or l itself where reduction is "none".

    logits (..., V), targets (...); rows whose target is -100 do not count, neither in the mean's divisor.
    Return (grad_logits, None).
    """
    counted = targets != -100
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    known = np.where(counted, targets, 0)
    losses = np.where(counted, -np.take_along_axis(log_p, known[..., None], axis=-1)[..., 0], 0)
    y = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counted.sum()}[reduction]
    return y, (log_p, known, counted, reduction)


@exercise(
    "rmsnorm", after=("mean", "multiply"), hint="x reaches y directly, and through r in all of its row."
)
def rmsnorm(x, weight, *, eps):
    """y = x r w, r = (mean(x^2) + eps)^(-1/2) over the last axis. x (..., d), weight (d,)."""
    r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    x_hat = x * r
    return x_hat * weight, (x_hat, r, weight)


@exercise(
    "rope", after=("multiply",), hint="A rotation is undone by the opposite one; its transpose is that."
)
def rope(x, cos, sin, *, interleaved):
    """Each pair (a, b) of x becomes (a cos - b sin, a sin + b cos).

    x (time, heads, d), cos and sin (time, 1, d/2). Pairs are (x_0, x_1), (x_2, x_3), .. where interleaved,
    else (x_j, x_{j + d/2}). Return (grad_x, None, None): the angles are constants.
    """
    half = x.shape[-1] // 2
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    a, b = x[..., first], x[..., second]
    y = np.empty_like(x)
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    return y, (cos, sin, first, second)


@exercise("attention", after=("softmax", "matmul"), hint="Backwards: through P v, the softmax, then q k^T.")
def attention(q, k, v, *, causal, scale):
    """S = scale q k^T, P = softmax(S) over the keys that are seen, y = P v.

    q (batch, heads, time_q, d), k (batch, kv_heads, time_k, d), v (batch, kv_heads, time_k, d_v). Head h
    reads the keys and values of kv head h // (heads // kv_heads). If causal, query i sees the keys
    j <= i + time_k - time_q. scale is d^(-1/2) where it is None.
    """
    group = q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    s = scale * (q @ keys.swapaxes(-1, -2))  # (batch, heads, time_q, time_k)
    if causal:
        i, j = np.indices(s.shape[-2:])
        s = np.where(j <= i + s.shape[-1] - s.shape[-2], s, -np.inf)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    return p @ values, (q, keys, values, p, scale, group)
