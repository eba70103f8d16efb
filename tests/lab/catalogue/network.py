"""Wrong answers to the middle and the top of the ladder."""

import numpy as np

from tests.lab import answers
from tests.lab.answers import back, grouped
from tests.lab.catalogue.making import wrong
from tinygrad_ds.ops.broadcast import sum_to


@wrong("matmul", "transposed", "shape")
def matmul_transposed_result(saved, g):
    a, b = answers.matmul(saved, g)
    return a.swapaxes(-1, -2), b.swapaxes(-1, -2)


@wrong("matmul", "broadcast")
def matmul_batch_not_summed(saved, g):
    a, b = saved
    return g @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ g


@wrong("matmul", "crash")
def matmul_untransposed_factor(saved, g):
    a, b = saved
    return g @ b, a @ g


@wrong("linear", "shape", "broadcast")
def linear_bias_not_summed(saved, g):
    grad_x, grad_weight, _ = answers.linear(saved, g)
    return grad_x, grad_weight, g


@wrong("linear", "transposed", "shape")
def linear_weight_transposed(saved, g):
    grad_x, grad_weight, grad_bias = answers.linear(saved, g)
    return grad_x, grad_weight.T, grad_bias


@wrong("linear", "factor")
def linear_bias_mean(saved, g):
    grad_x, grad_weight, grad_bias = answers.linear(saved, g)
    return grad_x, grad_weight, grad_bias * g.shape[-1] / g.size


@wrong("swiglu", "term")
def swiglu_slope_is_sigma(saved, g):
    gate, up, sigma = saved
    return g * up * sigma, g * gate * sigma


@wrong("swiglu", "swapped")
def swiglu_exchanged(saved, g):
    return answers.swiglu(saved, g)[::-1]


@wrong("swiglu", "term", "missing factor")
def swiglu_up_lacks_the_gate(saved, g):
    grad_gate, _ = answers.swiglu(saved, g)
    return grad_gate, g * saved[2]


@wrong("logsumexp", "jacobian")
def logsumexp_not_divided(saved, g):
    x, _, axis, keepdims = saved
    return (np.exp(x) * back(g, x.shape, axis, keepdims),)


@wrong("softmax", "jacobian")
def softmax_first_term(saved, g):
    y, _ = saved
    return (y * g,)


@wrong("softmax", "jacobian")
def softmax_diagonal(saved, g):
    y, _ = saved
    return (g * y * (1 - y),)


@wrong("softmax", "jacobian")
def softmax_unweighted_sum(saved, g):
    y, axis = saved
    return (y * (g - g.sum(axis=axis, keepdims=True)),)


@wrong("softmax", "jacobian")
def softmax_outer_factor(saved, g):
    y, axis = saved
    return (g - (g * y).sum(axis=axis, keepdims=True),)


@wrong("softmax", "axis")
def softmax_last_axis(saved, g):
    y, _ = saved
    return (y * (g - (g * y).sum(axis=-1, keepdims=True)),)


@wrong("softmax")
def softmax_mean_for_sum(saved, g):
    y, axis = saved
    return (y * (g - (g * y).mean(axis=axis, keepdims=True)),)


@wrong("log_softmax", "jacobian")
def log_softmax_like_identity(saved, g):
    return (g.copy(),)


@wrong("log_softmax", "jacobian")
def log_softmax_no_exp(saved, g):
    y, axis = saved
    return (g - y * g.sum(axis=axis, keepdims=True),)


@wrong("log_softmax", "jacobian")
def log_softmax_not_summed(saved, g):
    y, _ = saved
    return (g - np.exp(y) * g,)


@wrong("cross_entropy", "term")
def cross_entropy_no_target(saved, g):
    log_p, known, counted, reduction = saved
    row = np.broadcast_to(g / counted.sum() if reduction == "mean" else g, counted.shape)
    return np.exp(log_p) * (row * counted)[..., None], None


@wrong("cross_entropy", "mask")
def cross_entropy_ignored_count(saved, g):
    log_p, known, counted, reduction = saved
    grad = np.exp(log_p) - (np.arange(log_p.shape[-1]) == known[..., None])
    row = np.broadcast_to(g / counted.sum() if reduction == "mean" else g, counted.shape)
    return grad * row[..., None], None


@wrong("cross_entropy", "scale", "factor")
def cross_entropy_no_mean(saved, g):
    log_p, known, counted, _ = saved
    grad = np.exp(log_p) - (np.arange(log_p.shape[-1]) == known[..., None])
    return grad * (np.broadcast_to(g, counted.shape) * counted)[..., None], None


@wrong("cross_entropy", "scale", "factor")
def cross_entropy_mean_of_all(saved, g):
    log_p, known, counted, reduction = saved
    grad = np.exp(log_p) - (np.arange(log_p.shape[-1]) == known[..., None])
    row = np.broadcast_to(g / counted.size if reduction == "mean" else g, counted.shape)
    return grad * (row * counted)[..., None], None


@wrong("cross_entropy", "sign")
def cross_entropy_sign(saved, g):
    grad, _ = answers.cross_entropy(saved, g)
    return -grad, None


@wrong("rmsnorm", "term")
def rmsnorm_r_constant(saved, g):
    x_hat, r, weight = saved
    return r * g * weight, sum_to(g * x_hat, weight.shape)


@wrong("rmsnorm", "factor")
def rmsnorm_sum_for_mean(saved, g):
    x_hat, r, weight = saved
    h = g * weight
    grad = r * (h - x_hat * (h * x_hat).sum(axis=-1, keepdims=True))
    return grad, sum_to(g * x_hat, weight.shape)


@wrong("rmsnorm", "scale", "missing factor")
def rmsnorm_forgets_r(saved, g):
    x_hat, r, weight = saved
    grad, grad_weight = answers.rmsnorm(saved, g)
    return grad / r, grad_weight


@wrong("rmsnorm", "axis")
def rmsnorm_mean_over_rows(saved, g):
    x_hat, r, weight = saved
    h = g * weight
    return r * (h - x_hat * (h * x_hat).mean()), sum_to(g * x_hat, weight.shape)


@wrong("rmsnorm", "broadcast")
def rmsnorm_weight_not_summed(saved, g):
    return answers.rmsnorm(saved, g)[0], g * saved[0]


@wrong("rmsnorm", "term")
def rmsnorm_weight_missing_inside(saved, g):
    x_hat, r, weight = saved
    grad = r * (g * weight - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return grad, sum_to(g * x_hat, weight.shape)


@wrong("rope", "sign")
def rope_same_turn(saved, g):
    cos, sin, first, second = saved
    return answers.rope((cos, -sin, first, second), g)


@wrong("rope")
def rope_one_sign(saved, g):
    cos, sin, first, second = saved
    grad = np.empty_like(g)
    a, b = g[..., first], g[..., second]
    grad[..., first], grad[..., second] = a * cos + b * sin, b * cos + a * sin
    return grad, None, None


@wrong("rope", "none")
def rope_gradient_of_angles(saved, g):
    return answers.rope(saved, g)[0], np.zeros_like(saved[0]), np.zeros_like(saved[1])


def attend(saved, g, jacobian, scale):
    """Attention's gradient with a Jacobian and a scale of one's own."""
    q, keys, values, p, _, group = saved
    ds = scale * jacobian(p, g @ values.swapaxes(-1, -2))
    return ds @ keys, grouped(ds.swapaxes(-1, -2) @ q, group), grouped(p.swapaxes(-1, -2) @ g, group)


def whole(p, dp):
    """The right one."""
    return p * (dp - (dp * p).sum(axis=-1, keepdims=True))


@wrong("attention", "jacobian")
def attention_dropped_term(saved, g):
    return attend(saved, g, lambda p, dp: p * dp, saved[4])


@wrong("attention", "jacobian")
def attention_no_softmax(saved, g):
    return attend(saved, g, lambda p, dp: dp, saved[4])


@wrong("attention", "scale")
def attention_forgotten_scale(saved, g):
    return attend(saved, g, whole, 1.0)


@wrong("attention", "scale", "factor")
def attention_scale_twice(saved, g):
    return attend(saved, g, whole, saved[4] ** 2)


@wrong("attention", "broadcast")
def attention_group_not_summed(saved, g):
    q, keys, values, p, scale, group = saved
    ds = scale * whole(p, g @ values.swapaxes(-1, -2))
    return ds @ keys, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g


@wrong("attention", "swapped", "shape")
def attention_k_and_v_exchanged(saved, g):
    grad_q, grad_k, grad_v = answers.attention(saved, g)
    return grad_q, grad_v, grad_k


@wrong("router_weights", "jacobian")
def router_sum_constant(saved, g):
    s, t, total, chosen, norm, factor = saved
    grad = np.zeros_like(s)
    np.put_along_axis(grad, chosen, factor * (g / total if norm else g), axis=-1)
    return grad * s * (1 - s), None


@wrong("router_weights", "scale", "factor")
def router_forgets_factor(saved, g):
    return answers.router_weights((*saved[:-1], 1.0), g)


@wrong("router_weights", "term")
def router_forgets_sigmoid(saved, g):
    s, t, total, chosen, norm, factor = saved
    grad_t = factor * (g - (g * t / total).sum(axis=-1, keepdims=True)) / total if norm else factor * g
    grad = np.zeros_like(s)
    np.put_along_axis(grad, chosen, grad_t, axis=-1)
    return grad, None


@wrong("dispatch", "repeats")
def dispatch_one_copy(position, g):
    return g[position[:, 0]], None


@wrong("dispatch", "factor")
def dispatch_mean_of_copies(position, g):
    return g[position].mean(axis=1), None


@wrong("grouped_linear", "transposed", "shape")
def grouped_linear_transposed(saved, g):
    grad_rows, grad_weight, _ = answers.grouped_linear(saved, g)
    return grad_rows, grad_weight.swapaxes(1, 2), None


@wrong("grouped_linear", "partly", "crash")
def grouped_linear_first_expert(saved, g):
    rows, weight, offsets = saved
    _, grad_weight, _ = answers.grouped_linear(saved, g)
    return g @ weight[0], grad_weight, None


@wrong("combine", "missing factor")
def combine_forgets_the_weights(saved, g):
    rows, weights, position = saved
    return answers.combine((rows, np.ones_like(weights), position), g)


@wrong("combine", "shape", "broadcast")
def combine_weights_not_summed(saved, g):
    rows, weights, position = saved
    return answers.combine(saved, g)[0], g[:, None, :] * rows[position], None


@wrong("combine", "factor")
def combine_mean(saved, g):
    rows, weights, position = saved
    grad_rows, _, _ = answers.combine(saved, g)
    return grad_rows, (g[:, None, :] * rows[position]).mean(axis=-1), None


@wrong("absorbed_attention", "term")
def absorbed_latent_is_value_only(saved, g):
    grads = list(answers.absorbed_attention(saved, g))
    p, g_lat = saved[7], g @ saved[5]
    grads[2] = (p.swapaxes(1, 2) @ g_lat).sum(axis=0)
    return tuple(grads)


@wrong("absorbed_attention", "scale")
def absorbed_forgotten_scale(saved, g):
    return answers.absorbed_attention((*saved[:-1], 1.0), g)


@wrong("absorbed_attention", "transposed", "shape")
def absorbed_up_transposed(saved, g):
    grads = list(answers.absorbed_attention(saved, g))
    grads[4], grads[5] = grads[4].swapaxes(1, 2), grads[5].swapaxes(1, 2)
    return tuple(grads)


@wrong("shared_head", "term")
def shared_head_main_only(saved, g):
    h, h_mtp, weight, targets, p, p_mtp, mtp_weight = saved
    grads = list(answers.shared_head(saved, g))
    main = p.copy()
    main[np.arange(len(h)), targets] -= 1
    grads[2] = (main * g / len(h)).T @ h
    return tuple(grads)


@wrong("shared_head", "scale")
def shared_head_no_weight(saved, g):
    return answers.shared_head((*saved[:-1], 1.0), g)


@wrong("shared_head", "crash", "unknown", "partly")
def shared_head_same_targets(saved, g):
    h, h_mtp, weight, targets, p, p_mtp, mtp_weight = saved
    return answers.shared_head(
        (h, h_mtp, weight, np.append(targets[:1], targets[:-1]), p, p_mtp, mtp_weight), g
    )
