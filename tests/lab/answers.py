"""Right answers to all exercises: each must pass, and a wrong one is mostly one of these with a slip."""

import numpy as np

from tinygrad_ds.ops.broadcast import sum_to


def back(g, shape, axis, keepdims):
    """g with the reduced axis back, repeated to `shape`."""
    if axis is None:
        return np.broadcast_to(np.reshape(g, (1,) * len(shape)), shape)
    return np.broadcast_to(g if keepdims else np.expand_dims(g, axis), shape)


def add(saved, g):
    a, b = saved
    return sum_to(g, a), sum_to(g, b)


def multiply(saved, g):
    a, b = saved
    return sum_to(g * b, a.shape), sum_to(g * a, b.shape)


def divide(saved, g):
    a, b = saved
    return sum_to(g / b, a.shape), sum_to(-g * a / b**2, b.shape)


def exp(y, g):
    return (g * y,)


def tanh(y, g):
    return (g * (1 - y * y),)


def sigmoid(y, g):
    return (g * y * (1 - y),)


def relu(x, g):
    return (np.where(x > 0, g, 0),)


def silu(saved, g):
    x, sigma = saved
    return (g * sigma * (1 + x * (1 - sigma)),)


def gelu(saved, g):
    x, t = saved
    du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x * x)
    return (g * ((1 + t) / 2 + x / 2 * (1 - t * t) * du),)


def transpose(axes, g):
    return (g.transpose(np.argsort(axes)),)


def concatenate(shapes, g):
    ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
    return tuple(np.split(g, ends, axis=-1))


def broadcast_to(shape, g):
    return (sum_to(g, shape),)


def sum(saved, g):
    return (back(g, *saved),)


def mean(saved, g):
    shape, axis, keepdims = saved
    n = int(np.prod(shape)) if axis is None else shape[axis]
    return (back(g / n, shape, axis, keepdims),)


def max(saved, g):
    x, axis, keepdims = saved
    return (np.where(x == x.max(axis=axis, keepdims=True), back(g, x.shape, axis, keepdims), 0),)


def var(saved, g):
    d, divisor, axis, keepdims = saved
    return (2 * d * back(g / divisor, d.shape, axis, keepdims),)


def embedding(saved, g):
    shape, ids = saved
    grad = np.zeros(shape)
    np.add.at(grad, ids, g)
    return grad, None


def matmul(saved, g):
    a, b = saved
    return sum_to(g @ b.swapaxes(-1, -2), a.shape), sum_to(a.swapaxes(-1, -2) @ g, b.shape)


def linear(saved, g):
    x, weight = saved
    rows = g.reshape(-1, g.shape[-1])
    return g @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(axis=0)


def swiglu(saved, g):
    gate, up, sigma = saved
    return g * up * sigma * (1 + gate * (1 - sigma)), g * gate * sigma


def logsumexp(saved, g):
    x, y, axis, keepdims = saved
    return (np.exp(x - y) * back(g, x.shape, axis, keepdims),)


def softmax(saved, g):
    y, axis = saved
    return (y * (g - (g * y).sum(axis=axis, keepdims=True)),)


def log_softmax(saved, g):
    y, axis = saved
    return (g - np.exp(y) * g.sum(axis=axis, keepdims=True),)


def cross_entropy(saved, g):
    log_p, known, counted, reduction = saved
    grad = np.exp(log_p) - (np.arange(log_p.shape[-1]) == known[..., None])
    row = np.broadcast_to(g / counted.sum() if reduction == "mean" else g, counted.shape)
    return grad * (row * counted)[..., None], None


def rmsnorm(saved, g):
    x_hat, r, weight = saved
    h = g * weight
    grad_x = r * (h - x_hat * (h * x_hat).mean(axis=-1, keepdims=True))
    return grad_x, sum_to(g * x_hat, weight.shape)


def rope(saved, g):
    cos, sin, first, second = saved
    grad = np.empty_like(g)
    a, b = g[..., first], g[..., second]
    grad[..., first], grad[..., second] = a * cos + b * sin, b * cos - a * sin
    return grad, None, None


def grouped(grad, group):
    """The sum over the heads of a group."""
    return grad.reshape(grad.shape[0], -1, group, *grad.shape[2:]).sum(axis=2)


def attention(saved, g):
    q, keys, values, p, scale, group = saved
    dp = g @ values.swapaxes(-1, -2)
    ds = scale * p * (dp - (dp * p).sum(axis=-1, keepdims=True))
    return ds @ keys, grouped(ds.swapaxes(-1, -2) @ q, group), grouped(p.swapaxes(-1, -2) @ g, group)


def router_weights(saved, g):
    s, t, total, chosen, norm, factor = saved
    grad_t = factor * (g - (g * t / total).sum(axis=-1, keepdims=True)) / total if norm else factor * g
    grad = np.zeros_like(s)
    np.put_along_axis(grad, chosen, grad_t, axis=-1)
    return grad * s * (1 - s), None


def dispatch(position, g):
    return g[position].sum(axis=1), None


def grouped_linear(saved, g):
    rows, weight, offsets = saved
    grad_rows, grad_weight = np.zeros_like(rows), np.zeros_like(weight)
    for e in range(len(weight)):
        mine = slice(offsets[e], offsets[e + 1])
        grad_rows[mine] = g[mine] @ weight[e]
        grad_weight[e] = g[mine].T @ rows[mine]
    return grad_rows, grad_weight, None


def combine(saved, g):
    rows, weights, position = saved
    grad_rows = np.zeros_like(rows)
    grad_rows[position] = weights[:, :, None] * g[:, None, :]
    return grad_rows, (g[:, None, :] * rows[position]).sum(axis=-1), None


def absorbed_attention(saved, g):
    q_nope, q_rope, c_kv, k_r, w_uk, w_uv, q_lat, p, o_lat, scale = saved
    g_lat = g @ w_uv
    dp = g_lat @ c_kv.T
    ds = scale * p * (dp - (dp * p).sum(axis=-1, keepdims=True))
    turned = ds.swapaxes(1, 2)
    grad_q_lat = ds @ c_kv
    grad_c = (turned @ q_lat).sum(axis=0) + (p.swapaxes(1, 2) @ g_lat).sum(axis=0)
    grad_uk, grad_uv = q_nope.swapaxes(1, 2) @ grad_q_lat, g.swapaxes(1, 2) @ o_lat
    grad_nope = grad_q_lat @ w_uk.swapaxes(1, 2)
    return grad_nope, ds @ k_r, grad_c, (turned @ q_rope).sum(axis=0), grad_uk, grad_uv


def shared_head(saved, g):
    h, h_mtp, weight, targets, p, p_mtp, mtp_weight = saved
    main, second = p.copy(), p_mtp.copy()
    main[np.arange(len(h)), targets] -= 1
    second[np.arange(len(h_mtp)), targets[1:]] -= 1
    main *= g / len(h)
    second *= g * mtp_weight / len(h_mtp)
    return main @ weight, second @ weight, main.T @ h + second.T @ h_mtp, None


def clipped_objective(saved, g):
    rho, a, low, high = saved
    stopped = np.where(a > 0, rho > high, rho < low)
    return np.where(stopped, 0, -g * a * rho), None, None


def k3(saved, g):
    (d,) = saved
    return g * (1 - np.exp(d)), None


def jensen_shannon(saved, g):
    q, p, log_q, _, beta = saved
    if beta == 0:
        return g * (q - p), None
    log_m = np.log(beta * p + (1 - beta) * q)
    a = log_q - log_m
    if beta != 1:
        a = (1 - beta) * a
    return g * q * (a - (q * a).sum(axis=-1, keepdims=True)), None


def straight_through(saved, g):
    return (g / saved[1],)


def fp8_linear(saved, g):
    kept, factor, q, side = saved
    return q(g, 1, side) @ factor, q(g, side, 1).T @ q(kept, side, 1)
