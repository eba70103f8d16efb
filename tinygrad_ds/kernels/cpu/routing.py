"""The router, fused: scores, choice and weights of a token while they are in the cache, token by token.

The best are found by looking for the best one K times. For the K of a router that costs less than sorting,
and is what the rule for ties asks for: only a greater one takes the place of an earlier one.
Backward computes the weights again from the scores.
"""

from functools import lru_cache

import numba
import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.ops.routing import RouterSelection, RouterSelectionSaved, settled

_TINY = 1e-20  # beside the sum of the chosen scores
PARALLEL_FROM = 1 << 13  # logits: choosing takes some 25 ns for each


def router_selection(
    logits,
    bias=None,
    *,
    num_experts_per_tok,
    n_group=1,
    topk_group=1,
    scoring_func="sigmoid",
    topk_method=None,
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    chosen=None,
):
    biases = [] if bias is None else [bias]
    if chosen is not None or not covered(logits, *biases) or any(b.shape != logits.shape[1:] for b in biases):
        return NotImplemented
    tokens, experts = logits.shape
    k, c = num_experts_per_tok, float(routed_scaling_factor)
    options = options_of_select(
        experts,
        num_experts_per_tok=k,
        n_group=n_group,
        topk_group=topk_group,
        scoring_func=scoring_func,
        topk_method=topk_method,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=c,
    )
    no_bias = bias is None or scoring_func == "softmax"
    offset = np.zeros(experts, logits.dtype) if no_bias else contiguous(bias)
    weights, indices = np.empty((tokens, k), logits.dtype), np.empty((tokens, k), np.int64)
    scores = np.empty((tokens, experts), logits.dtype)
    _select(contiguous(logits), offset, *options, weights, indices, scores)
    arrays = 1 if bias is None else 2
    saved = RouterSelectionSaved(scores, indices, scoring_func, norm_topk_prob, c, arrays)
    return RouterSelection(weights, indices, scores), saved


@lru_cache
def options_of_select(
    experts,
    *,
    num_experts_per_tok,
    n_group,
    topk_group,
    scoring_func,
    topk_method,
    norm_topk_prob,
    routed_scaling_factor,
):
    """The rules as the kernels take them. Raises ValueError for rules that no choice can meet."""
    topk_method, n_group, topk_group = settled(
        experts, num_experts_per_tok, n_group, topk_group, scoring_func, topk_method, norm_topk_prob
    )
    judged, lost = (2, -np.inf) if topk_method == "noaux_tc" else (1, 0.0)
    c = float(routed_scaling_factor)
    return scoring_func == "softmax", n_group, topk_group, judged, lost, -np.inf, norm_topk_prob, c, _TINY


def router_selection_backward(saved, g):
    scores, indices, scoring_func, norm_topk_prob, c, arrays = saved
    grad_logits = np.empty_like(scores)
    none = np.empty((0, 0), scores.dtype)
    g_weights, h = (none if grad is None else contiguous(grad) for grad in (g[0], g[2]))
    options = scoring_func == "softmax", norm_topk_prob, c, _TINY
    _select_backward(scores, indices, g_weights, h, *options, grad_logits)
    return (grad_logits, None)[:arrays]


_OPTIONS, _RESULTS = "boolean, intp, intp, intp, T, T, boolean, T, T", "T[:, ::1], int64[:, ::1], T[:, ::1]"


@kernel(f"(T[:, ::1], T[::1], {_OPTIONS}, {_RESULTS})", PARALLEL_FROM)
def _select(
    logits,
    bias,
    softmax,
    n_group,
    topk_group,
    judged,
    lost,
    nothing,
    normalised,
    c,
    tiny,
    weights,
    indices,
    scores,
):
    tokens, experts = logits.shape
    for part in prange(PARTS):
        choice, taken = np.empty(experts, logits.dtype), np.empty(experts, np.bool_)
        of_groups, kept = np.empty(n_group, logits.dtype), np.empty(n_group, np.bool_)
        for n in range(share(part, tokens), share(part + 1, tokens)):
            choose(
                logits[n],
                bias,
                softmax,
                n_group,
                topk_group,
                judged,
                lost,
                nothing,
                normalised,
                c,
                tiny,
                choice,
                taken,
                of_groups,
                kept,
                weights[n],
                indices[n],
                scores[n],
            )


@numba.njit
def choose(
    z,
    bias,
    softmax,
    n_group,
    topk_group,
    judged,
    lost,
    nothing,
    normalised,
    c,
    tiny,
    choice,
    taken,
    of_groups,
    kept,
    weights,
    indices,
    s,
):
    """One token: logits z (E,) -> weights and indices (K,), scores s (E,). choice .. kept: room to work."""
    real = z.dtype.type
    experts = len(z)
    size = experts // n_group
    if softmax:
        _softmax(z, s)
    else:
        for e in range(experts):
            small = exp(-abs(z[e]))
            s[e] = (real(1) if z[e] >= 0 else small) / (real(1) + small)
    for e in range(experts):
        choice[e] = s[e] + bias[e] if s[e] == s[e] else nothing
    if n_group > 1:
        for group in range(n_group):
            first, second = nothing, nothing
            for e in range(group * size, (group + 1) * size):
                if choice[e] > first:
                    first, second = choice[e], first
                elif choice[e] > second:
                    second = choice[e]
            of_groups[group] = first + second if judged == 2 else first
        _take_best(of_groups, topk_group, kept)
        for e in range(experts):
            if not kept[e // size]:
                choice[e] = lost
    _take_best(choice, len(indices), taken)
    k = 0
    total = tiny
    for e in range(experts):
        if taken[e]:
            indices[k], weights[k] = e, s[e] * c
            total += s[e]
            k += 1
    if normalised:
        for k in range(len(indices)):
            weights[k] /= total


@numba.njit
def _softmax(z, s):
    top = largest(z)
    total = z.dtype.type(0)
    for e in range(len(z)):
        s[e] = exp(z[e] - top)
        total += s[e]
    for e in range(len(z)):
        s[e] /= total


@numba.njit
def _take_best(values, count, taken):
    """taken[i]: whether values[i] is one of the `count` largest; the lower index where values are equal."""
    taken[:] = False
    for _ in range(count):
        best = -1
        for i in range(len(values)):
            if not taken[i] and (best < 0 or values[i] > values[best]):
                best = i
        taken[best] = True


@kernel("(T[:, ::1], int64[:, ::1], T[:, ::1], T[:, ::1], boolean, boolean, T, T, T[:, ::1])")
def _select_backward(scores, indices, g_weights, h, softmax, normalised, c, tiny, grad_logits):
    real = scores.dtype.type
    tokens, experts = scores.shape
    for part in prange(PARTS):
        for n in range(share(part, tokens), share(part + 1, tokens)):
            s, grad = scores[n], grad_logits[n]  # grad is dL/ds first
            for e in range(experts):
                grad[e] = h[n, e] if h.size else real(0)
            if g_weights.size:
                total, along = tiny, real(0)
                for k in range(indices.shape[1]):
                    t = s[indices[n, k]]
                    total += t
                    along += g_weights[n, k] * t
                for k in range(indices.shape[1]):
                    if normalised:
                        grad[indices[n, k]] += c * (g_weights[n, k] - along / total) / total
                    else:
                        grad[indices[n, k]] += c * g_weights[n, k]
            mean = real(0)
            for e in range(experts):
                mean += s[e] * grad[e]
            for e in range(experts):
                grad[e] = s[e] * (grad[e] - mean) if softmax else grad[e] * s[e] * (real(1) - s[e])
