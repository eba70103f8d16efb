"""The router on the device, the order of its choices and their counts: launches of routing.cu.

The host reads nothing. Where the options cannot be met the reference says so; an index that is no expert's
stops the launch.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, launch
from tinygrad_ds.ops.routing import RouterSelection, settled


class RouterSelectionSaved(NamedTuple):
    """What the backward reads."""

    scores: cupy.ndarray  # (N, E)
    indices: cupy.ndarray  # (N, K)
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    arrays: int  # 2 where a bias was given, else 1


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
    if chosen is not None or not covered(logits, *([] if bias is None else [bias])) or logits.ndim != 2:
        return NotImplemented
    (tokens, experts), count = logits.shape, num_experts_per_tok
    topk_method, n_group, topk_group = settled(
        experts, count, n_group, topk_group, scoring_func, topk_method, norm_topk_prob
    )
    factor, kind = float(routed_scaling_factor), logits.dtype
    logits, scores = contiguous(logits), cupy.empty((tokens, experts), kind)
    indices, weights = cupy.empty((tokens, count), cupy.int64), cupy.empty((tokens, count), kind)
    arguments = logits, None if bias is None else contiguous(bias), scores, indices, weights
    sizes = tokens, experts, count, n_group, topk_group
    rules = int(scoring_func == "softmax"), int(norm_topk_prob), factor
    room = 4 * (experts + n_group) * kind.itemsize
    launch(
        "routing.choose", (blocks(tokens, 4),), (128,), *arguments, *sizes, *rules, dtype=kind, shared=room
    )
    arrays = 1 if bias is None else 2
    saved = RouterSelectionSaved(scores, indices, scoring_func, norm_topk_prob, factor, arrays)
    return RouterSelection(weights, indices, scores), saved


def router_selection_backward(saved, g):
    scores, indices, scoring_func, norm_topk_prob, factor, arrays = saved
    tokens, experts = scores.shape
    g_weights, h = (None if each is None else contiguous(each) for each in (g[0], g[2]))
    grad = cupy.empty_like(scores)
    arguments = g_weights, h, scores, indices, grad, tokens, experts, indices.shape[1]
    rules = int(scoring_func == "softmax"), int(norm_topk_prob), factor
    launch("routing.choose_backward", (blocks(tokens, 4),), (128,), *arguments, *rules, dtype=scores.dtype)
    return (grad, None)[:arrays]


def expert_order(indices, *, num_experts):
    if not indices.size:
        return NotImplemented
    indices = contiguous(indices.astype(cupy.int64, copy=False))
    offsets = cupy.empty(num_experts + 1, cupy.int64)
    position = cupy.empty(indices.shape, cupy.int64)
    arguments = indices, offsets, position, indices.size, num_experts
    launch("routing.order", (num_experts,), (256,), *arguments, dtype="float32")
    return offsets, position


def count_numbers(values, *, bins):
    if not values.size:
        return NotImplemented
    values = contiguous(values.astype(cupy.int64, copy=False))
    counts = cupy.empty(bins, cupy.int64)
    launch("routing.count", (bins,), (256,), values, counts, values.size, dtype="float32")
    return counts
