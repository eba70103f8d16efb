"""What the usual mistakes in the parts of a network compute, so that the grader knows them."""

import numpy as np

from lab.exercises.making import LADDER, slip
from lab.exercises.slips import logistic, soft
from tinygrad_ds.ops.broadcast import sum_to


def rms(x, eps):
    """r and x_hat of rmsnorm."""
    r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return r, x * r


@slip("rmsnorm", "term", "r is treated as a constant: x also reaches y through r, in all of its row")
def _(g, x, weight, *, eps):
    r, x_hat = rms(x, eps)
    return r * g * weight, sum_to(g * x_hat, weight.shape)


@slip("rmsnorm", "term", "the weight is missing in the term that comes through r: it needs h = g w, not g")
def _(g, x, weight, *, eps):
    r, x_hat = rms(x, eps)
    grad = r * (g * weight - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return grad, sum_to(g * x_hat, weight.shape)


@slip("rmsnorm", "factor", "the term through r is summed over the row where it must be averaged (1/d)")
def _(g, x, weight, *, eps):
    r, x_hat = rms(x, eps)
    h = g * weight
    return r * (h - x_hat * (h * x_hat).sum(axis=-1, keepdims=True)), sum_to(g * x_hat, weight.shape)


@slip("rmsnorm", "axis", "the mean of the term through r is taken over all rows, but each row has its own r")
def _(g, x, weight, *, eps):
    r, x_hat = rms(x, eps)
    h = g * weight
    return r * (h - x_hat * (h * x_hat).mean()), sum_to(g * x_hat, weight.shape)


@slip("rmsnorm", "scale", "the saved r is forgotten: dx_hat/dx = r (..)")
def _(g, x, weight, *, eps):
    _, x_hat = rms(x, eps)
    h = g * weight
    return h - x_hat * (h * x_hat).mean(axis=-1, keepdims=True), sum_to(g * x_hat, weight.shape)


@slip("rope", "sign", "this turns g by the same angle again: the transpose of a rotation is the opposite one")
def _(g, x, cos, sin, *, interleaved):
    return LADDER["rope"].forward(np.array(g), cos, sin, interleaved=interleaved)[0], None, None


def attended(g, q, k, v, causal, scale, jacobian="whole", scaled=True, first_only=False):
    """The gradient of attention with parts left out."""
    _, (_, keys, values, p, scale, group) = LADDER["attention"].forward(q, k, v, causal=causal, scale=scale)
    dp = g @ values.swapaxes(-1, -2)
    ds = {
        "whole": p * (dp - (dp * p).sum(axis=-1, keepdims=True)),
        "first": p * dp,
        "none": dp,
        "diagonal": dp * p * (1 - p),
    }[jacobian]
    ds = ds * scale if scaled else ds

    def gathered(grad):
        split = grad.reshape(grad.shape[0], -1, group, *grad.shape[2:])
        return split[:, :, 0] if first_only else split.sum(axis=2)

    return ds @ keys, gathered(ds.swapaxes(-1, -2) @ q), gathered(p.swapaxes(-1, -2) @ g)


@slip(
    "attention", "jacobian", "the second term of the softmax's Jacobian is dropped: dS = P (dP - sum_j dP P)"
)
def _(g, q, k, v, *, causal, scale):
    return attended(g, q, k, v, causal, scale, jacobian="first")


@slip("attention", "jacobian", "the softmax is passed over: dP goes on as if it were dS")
def _(g, q, k, v, *, causal, scale):
    return attended(g, q, k, v, causal, scale, jacobian="none")


@slip("attention", "jacobian", "only the diagonal of the softmax's Jacobian is used")
def _(g, q, k, v, *, causal, scale):
    return attended(g, q, k, v, causal, scale, jacobian="diagonal")


@slip("attention", "scale", "the saved scale is forgotten: S = scale q k^T, so dq and dk carry it too")
def _(g, q, k, v, *, causal, scale):
    return attended(g, q, k, v, causal, scale, scaled=False)


@slip(
    "attention",
    "broadcast",
    "the heads of a group share k and v, so their gradients are summed over the group",
)
def _(g, q, k, v, *, causal, scale):
    return attended(g, q, k, v, causal, scale, first_only=True)


@slip("router_weights", "jacobian", "the sum D is treated as a constant, but every chosen score stands in it")
def _(g, logits, chosen, *, norm, factor):
    s = logistic(logits)
    t = np.take_along_axis(s, chosen, axis=-1)
    grad = np.zeros_like(s)
    given = factor * (g / t.sum(axis=-1, keepdims=True) if norm else g)
    np.put_along_axis(grad, chosen, given, axis=-1)
    return grad * s * (1 - s), None


@slip("router_weights", "term", "the slope of the sigmoid is missing: ds/dz = s (1 - s)")
def _(g, logits, chosen, *, norm, factor):
    right = LADDER["router_weights"].truth((logits, chosen), {"norm": norm, "factor": factor}, g)[0]
    s = logistic(logits)
    return right / (s * (1 - s)), None


@slip("dispatch", "repeats", "only one copy is read back: sum the gradients of all K copies")
def _(g, x, indices, *, num_experts):
    position = LADDER["dispatch"].forward(x, indices, num_experts=num_experts)[1]
    return g[position[:, 0]], None


@slip("shared_head", "term", "the head is used twice, but only the main loss reaches its gradient here")
def _(g, h, h_mtp, weight, targets, *, mtp_weight):
    return shared(g, h, h_mtp, weight, targets, mtp_weight, mtp=False)


@slip("shared_head", "scale", "mtp_weight is forgotten in the gradients of the second loss")
def _(g, h, h_mtp, weight, targets, *, mtp_weight):
    return shared(g, h, h_mtp, weight, targets, 1.0)


@slip("shared_head", "scale", "each mean's 1/N is missing")
def _(g, h, h_mtp, weight, targets, *, mtp_weight):
    return shared(g, h, h_mtp, weight, targets, mtp_weight, share=False)


def shared(g, h, h_mtp, weight, targets, mtp_weight, mtp=True, share=True):
    """The gradient of the shared head with parts left out."""

    def at_logits(rows, t):
        p = soft(rows @ weight.T)
        p[np.arange(len(t)), t] -= 1
        return p / len(t) if share else p

    main, second = g * at_logits(h, targets), g * mtp_weight * at_logits(h_mtp, targets[1:])
    both = main.T @ h + (second.T @ h_mtp if mtp else 0)
    return main @ weight, second @ weight, both, None


def latent(g, arrays, scale, key=True, jacobian=True, scaled=True):
    """The gradient of absorbed attention with parts left out."""
    q_nope, q_rope, c_kv, k_r, w_uk, w_uv = arrays
    _, saved = LADDER["absorbed_attention"].forward(*arrays, scale=scale)
    q_lat, p, o_lat = saved[6:9]
    g_lat = g @ w_uv
    dp = g_lat @ c_kv.T
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) if jacobian else p * dp
    ds = ds * scale if scaled else ds
    grad_q_lat = ds @ c_kv
    grad_c = (p.swapaxes(1, 2) @ g_lat).sum(axis=0)
    if key:
        grad_c = grad_c + (ds.swapaxes(1, 2) @ q_lat).sum(axis=0)
    return (
        grad_q_lat @ w_uk.swapaxes(1, 2),
        ds @ k_r,
        grad_c,
        (ds.swapaxes(1, 2) @ q_rope).sum(axis=0),
        q_nope.swapaxes(1, 2) @ grad_q_lat,
        g.swapaxes(1, 2) @ o_lat,
    )


@slip("absorbed_attention", "term", "the latent is a value and a key: its part as a key is missing")
def _(g, *arrays, scale):
    return latent(g, arrays, scale, key=False)


@slip("absorbed_attention", "jacobian", "the second term of the softmax's Jacobian is dropped")
def _(g, *arrays, scale):
    return latent(g, arrays, scale, jacobian=False)


@slip("absorbed_attention", "scale", "the saved scale is forgotten: S is scale times the products")
def _(g, *arrays, scale):
    return latent(g, arrays, scale, scaled=False)


@slip("combine", "missing factor", "the rows' gradient lacks the weights: y is their weighted sum")
def _(g, rows, weights, position):
    grad = np.zeros_like(rows)
    grad[position] = g[:, None, :]
    return grad, (g[:, None, :] * rows[position]).sum(axis=-1), None
