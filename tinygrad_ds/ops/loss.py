"""The loss. The reference form; its fused twin is in kernels/cpu/loss.py."""

from typing import NamedTuple

import numpy as np

from tinygrad_ds.device import Array, namespace, to_host
from tinygrad_ds.primitive import primitive


class CrossEntropySaved(NamedTuple):
    """What cross_entropy_backward needs: the statistics of every row beside the logits."""

    logits: Array  # (..., V)
    lse: Array  # (...)  log sum_v exp(logits_v)
    targets: Array  # (...)
    counted: Array  # (...) bool: not ignored
    reduction: str


@primitive
def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    """How surprising the targets are: l = -log softmax(z)[t] = lse - z_t with lse = log sum_v exp(z_v).

    logits z (..., V), targets t (...) of integers in 0..V-1, or ignore_index where a row does not count ->
    the mean of l over the rows that count, their sum, or with "none" l (...) itself, 0 where ignored. The
    largest logit is taken out of the exponentials first, so that none overflows. ValueError for targets out
    of range, shapes that do not match, and a mean over no row at all.
    """
    xp = namespace(logits)
    counted = check_targets(logits.shape, targets, ignore_index, reduction)
    largest = logits.max(axis=-1, keepdims=True)
    lse = xp.log(xp.exp(logits - largest).sum(axis=-1)) + largest[..., 0]
    known = xp.where(counted, targets, 0)[..., None]
    losses = lse - xp.take_along_axis(logits, known, axis=-1)[..., 0]
    losses = xp.where(counted, losses, xp.zeros_like(losses))
    saved = CrossEntropySaved(logits, lse, targets, counted, reduction)
    if reduction == "none":
        return losses, saved
    return (losses.sum() if reduction == "sum" else losses.sum() / int(counted.sum())), saved


@cross_entropy.backward
def cross_entropy_backward(saved, g):
    """From g = dL/dl to dL/dz, row by row; the targets get no gradient.

        l = log sum_v exp(z_v) - z_t
        dl/dz_v = exp(z_v) / sum_u exp(z_u) - [v = t]  =  p_v - [v = t],    p = softmax(z) = exp(z - lse).
    So dL/dz_nv = g_n (p_nv - [v = t_n]), where g_n is g for the sum, g / N for the mean over N rows, and 0
    for ignored rows. Each row of the gradient sums to 0: adding a constant to all logits changes nothing.
    """
    logits, lse, targets, counted, reduction = saved
    xp = namespace(logits)
    grad = xp.exp(logits - lse[..., None])
    grad -= xp.arange(logits.shape[-1]) == targets[..., None]
    g_n = g / int(counted.sum()) if reduction == "mean" else g
    grad *= xp.broadcast_to(g_n, counted.shape)[..., None]
    return xp.where(counted[..., None], grad, xp.zeros_like(grad)), None


def check_targets(shape: tuple[int, ...], targets: Array, ignore_index: int, reduction: str) -> Array:
    """Which rows of logits of `shape` count: bool, of targets' shape. ValueError says what is wrong."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r} but must be mean, sum or none")
    if targets.dtype.kind not in "iu":
        raise ValueError(
            f"targets are {targets.dtype} but must be integers, one class for each row of logits"
        )
    if shape[:-1] != targets.shape:
        raise ValueError(f"targets have shape {targets.shape} but logits {shape} need {shape[:-1]}")
    classes = shape[-1]
    counted = targets != ignore_index
    wrong = counted & ((targets < 0) | (targets >= classes))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(to_host(wrong))[0])
        raise ValueError(
            f"target {int(targets[place])} at {place} is no class: there are {classes}, "
            f"so give 0..{classes - 1}, or {ignore_index} for a row that does not count"
        )
    if reduction == "mean" and not counted.any():
        raise ValueError(
            f"cross_entropy has no row to average: all {targets.size} targets are {ignore_index}; "
            'use reduction="sum" where that can happen'
        )
    return counted
