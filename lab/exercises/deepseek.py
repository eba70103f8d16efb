"""The top of the ladder: the router, experts, MLA's absorbed attention and MTP's shared head."""

import numpy as np

import tinygrad_ds as tg
from lab.cases import MAKERS, Case, Draw
from lab.exercises.making import exercise
from tinygrad_ds import Tensor


def router_cases(draw: Draw) -> Case:
    """Logits, and the experts that were chosen."""
    (logits, _), options = MAKERS["router_selection"](draw)
    chosen = draw.choices(len(logits), logits.shape[1], options["num_experts_per_tok"])
    return Case((logits, chosen), {"norm": options["norm_topk_prob"], "factor": draw.among(2.5, 0.4)})


def router_weights_of(logits: Tensor, chosen: Tensor, *, norm: bool, factor: float) -> Tensor:
    """The weights of the chosen experts, from small primitives."""
    t = tg.take_along_axis(tg.sigmoid(logits), chosen.data, axis=-1)
    return factor * (t / t.sum(axis=-1, keepdims=True) if norm else t)


@exercise(
    "router_weights",
    after=("sigmoid", "divide", "embedding"),
    hint="With t the chosen scores and D their sum, t_k stands in its own numerator and in every D.",
    function=router_weights_of,
    maker=router_cases,
)
def router_weights(logits, chosen, *, norm, factor):
    """w = factor t, t = sigmoid(logits) of the chosen experts; if norm, t is first divided by its sum.

    logits (N, E), chosen (N, K), no expert twice in a row -> w (N, K). Return (grad_logits, None).
    """
    s = 1 / (1 + np.exp(-logits))
    t = np.take_along_axis(s, chosen, axis=-1)
    total = t.sum(axis=-1, keepdims=True)
    return factor * (t / total if norm else t), (s, t, total, chosen, norm, factor)


def dispatched_rows(x: Tensor, indices: Tensor, *, num_experts: int) -> Tensor:
    """The rows alone."""
    return tg.dispatch(x, indices, num_experts=num_experts).rows


@exercise(
    "dispatch",
    after=("embedding",),
    hint="x[n] was copied K times. position says where its copies are.",
    function=dispatched_rows,
)
def dispatch(x, indices, *, num_experts):
    """A copy of row n of x for each of its K experts, sorted by expert. Return (grad_x, None).

    x (N, d), indices (N, K) -> rows (N K, d); row position[n, k] is the copy for the k-th expert of n.
    """
    n, k = indices.shape
    order = np.argsort(indices.reshape(-1), kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(n * k)
    return x[order // k], position.reshape(n, k)


@exercise("grouped_linear", after=("linear",), hint="One linear map for each run of rows.")
def grouped_linear(rows, weight, offsets):
    """y_r = W_e x_r for each row r of expert e, whose rows are offsets[e] to offsets[e + 1] - 1.

    rows (M, in), weight (E, out, in), offsets (E + 1,) -> y (M, out). Return (grad_rows, grad_weight, None).
    """
    y = np.zeros((len(rows), weight.shape[1]))
    for e in range(len(weight)):
        start, stop = offsets[e], offsets[e + 1]
        y[start:stop] = rows[start:stop] @ weight[e].T
    return y, (rows, weight, offsets)


@exercise("combine", after=("dispatch", "multiply"), hint="A weighted sum: rows and weights are its factors.")
def combine(rows, weights, position):
    """y[n] = sum_k weights[n, k] rows[position[n, k]]: the answers of a token's experts, put together.

    rows (M, d), weights (N, K), position (N, K), every row read once -> y (N, d).
    Return (grad_rows, grad_weights, None).
    """
    return (weights[:, :, None] * rows[position]).sum(axis=1), (rows, weights, position)


def absorbed_cases(draw: Draw) -> Case:
    """One sequence of MLA, two heads or so."""
    time, h, r = draw.size("time"), draw.size("heads"), draw.size("d")
    d_n, d_r, d_v = draw.size("head"), draw.size("head"), draw.size("head")
    shapes = (h, time, d_n), (h, time, d_r), (time, r), (time, d_r), (h, d_n, r), (h, d_v, r)
    return Case(tuple(draw.reals(*shape) for shape in shapes), {"scale": draw.among(0.6, 1.3)})


def absorbed(
    q_nope: Tensor, q_rope: Tensor, c_kv: Tensor, k_r: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float
) -> Tensor:
    """MLA over the latents, from small primitives."""
    s = scale * ((q_nope @ w_uk) @ c_kv.T + q_rope @ k_r.T)  # (h, time, time)
    hidden = np.triu(np.ones(s.shape[-2:], dtype=bool), 1)
    p = tg.softmax(tg.where(hidden, -1e30, s), axis=-1)
    return (p @ c_kv) @ w_uv.swapaxes(1, 2)


@exercise(
    "absorbed_attention",
    after=("attention", "rope"),
    hint="c_kv is used three ways: as key, as value, and by all heads. Its gradients add up.",
    function=absorbed,
    maker=absorbed_cases,
)
def absorbed_attention(q_nope, q_rope, c_kv, k_r, w_uk, w_uv, *, scale):
    """MLA's absorbed form, causal: all heads attend to the latents themselves.

        q_lat = q_nope W_UK,  S = scale (q_lat c_kv^T + q_rope k_r^T),  P = softmax(S),  y = (P c_kv) W_UV^T

    q_nope (h, time, d_n), q_rope (h, time, d_r), c_kv (time, r), k_r (time, d_r), w_uk (h, d_n, r),
    w_uv (h, d_v, r) -> y (h, time, d_v).
    """
    q_lat = q_nope @ w_uk  # (h, time, r)
    s = scale * (q_lat @ c_kv.T + q_rope @ k_r.T)  # (h, time, time)
    s = np.where(np.tril(np.ones(s.shape[-2:], dtype=bool)), s, -np.inf)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    o_lat = p @ c_kv  # (h, time, r)
    return o_lat @ w_uv.swapaxes(1, 2), (q_nope, q_rope, c_kv, k_r, w_uk, w_uv, q_lat, p, o_lat, scale)


def shared_head_cases(draw: Draw) -> Case:
    """Some rows of the trunk, one less of the MTP module."""
    rows, d, vocab = draw.size("time", least=2), draw.size("d"), draw.size("vocab", least=2)
    targets = draw.integers(0, vocab - 1, rows)
    arrays = draw.reals(rows, d), draw.reals(rows - 1, d), draw.reals(vocab, d), targets
    return Case(arrays, {"mtp_weight": draw.among(0.3, 0.1)})


def two_losses(h: Tensor, h_mtp: Tensor, weight: Tensor, targets: Tensor, *, mtp_weight: float) -> Tensor:
    """Both losses behind one head, from the engine's primitives."""
    main = tg.cross_entropy(tg.linear(h, weight), targets)
    return main + mtp_weight * tg.cross_entropy(tg.linear(h_mtp, weight), targets.data[1:])


@exercise(
    "shared_head",
    after=("cross_entropy", "linear"),
    hint="The head is used twice, so its gradient is the sum of two.",
    function=two_losses,
    maker=shared_head_cases,
)
def shared_head(h, h_mtp, weight, targets, *, mtp_weight):
    """MTP's loss beside the main one, through one head W:  L = CE(h W^T, t) + mtp_weight CE(h' W^T, t').

    h (N, d), h_mtp (N - 1, d), weight (V, d), targets (N,); t' are the targets from the second on. CE is the
    mean over its rows. Return (grad_h, grad_h_mtp, grad_weight, None).
    """

    def cross_entropy(logits, t):
        z = logits - logits.max(axis=-1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return -log_p[np.arange(len(t)), t].mean(), np.exp(log_p)

    main, p = cross_entropy(h @ weight.T, targets)
    mtp, p_mtp = cross_entropy(h_mtp @ weight.T, targets[1:])
    return main + mtp_weight * mtp, (h, h_mtp, weight, targets, p, p_mtp, mtp_weight)
