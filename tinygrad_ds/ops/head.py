"""The output head and its loss in one. The reference form; its fused twin is in kernels/cpu/head.py."""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.broadcast import fit
from tinygrad_ds.ops.loss import check_targets
from tinygrad_ds.ops.matmul import check_inputs, linear
from tinygrad_ds.primitive import primitive


class LinearCrossEntropySaved(NamedTuple):
    """What both halves of the derivative need. N rows count; their probabilities are as large as logits."""

    x: Array  # (..., d)
    weight: Array  # (V, d)
    p: Array  # (N, V)  softmax of the logits
    targets: Array  # (N,)
    counted: Array  # (...) bool: not ignored
    divisor: int  # N for the mean, 1 for the sum


@primitive(weights=(1,))
def linear_cross_entropy(x, weight, targets, *, ignore_index=-100, reduction="mean"):
    """How surprising the targets are to a model whose logits are z = x W^T: l = log sum_v exp(z_v) - z_t.

    x (..., d), weight W (V, d), targets t (...) of integers in 0..V-1, or ignore_index where a row does not
    count -> the mean of l over the rows that count, or their sum. It is cross_entropy(linear(x, W), t), but
    logits of rows that do not count are not computed, and the fused twin never holds more than a few hundred
    rows of the others. ValueError for shapes that do not match, targets out of range, and a mean over no row
    at all.
    """
    xp = namespace(x)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r} but must be mean or sum")
    check_inputs(x, weight)
    counted = check_targets((*x.shape[:-1], len(weight)), targets, ignore_index, reduction)
    known = targets[counted]  # (N,)
    z, _ = linear.forward(x[counted], weight)  # (N, V)
    z = z - z.max(axis=-1, keepdims=True)
    p = xp.exp(z)
    total = p.sum(axis=-1, keepdims=True)  # (N, 1)
    losses = xp.log(total[:, 0]) - z[xp.arange(len(z)), known]
    p /= total
    divisor = len(z) if reduction == "mean" else 1
    return losses.sum() / divisor, LinearCrossEntropySaved(x, weight, p, known, counted, divisor)


@linear_cross_entropy.backward_input
def linear_cross_entropy_backward_input(saved, g):
    """From g = dL/dl to dL/dx, through the logits z = x W^T.

        dL/dz_nv = g_n (p_nv - [v = t_n]),   p = softmax(z),   g_n = g for the sum and g / N for the mean
        dL/dx_ni = sum_v dL/dz_nv W_vi,   that is   dL/dx = dL/dz W.
    In words: x is pulled towards the target's row of W and pushed away from the mean row, each row counted by
    its probability. Where the target is certain, nothing moves; rows that do not count get 0.
    """
    x, weight, counted = saved.x, saved.weight, saved.counted
    grad_x = namespace(x).zeros_like(x)
    grad_x[counted] = fit(_logits_gradient(saved, g) @ weight, x[counted])
    return grad_x, None, None


@linear_cross_entropy.backward_weight
def linear_cross_entropy_backward_weight(saved, g):
    """From g = dL/dl to dL/dW: see `backward_input` for dL/dz.

    dL/dW_vi = sum_n dL/dz_nv x_ni,   that is   dL/dW = (dL/dz)^T x,   over the rows n that count.
    A column of dL/dW sums to 0 over v, as a row of dL/dz does: logits that all grow alike change nothing.
    """
    return None, fit(_logits_gradient(saved, g).T @ saved.x[saved.counted], saved.weight), None


def _logits_gradient(saved: LinearCrossEntropySaved, g: Array) -> Array:
    """dL/dz (N, V)."""
    rows = namespace(g).arange(len(saved.p))
    grad = saved.p.copy()
    grad[rows, saved.targets] -= 1
    grad *= g / saved.divisor
    return grad
