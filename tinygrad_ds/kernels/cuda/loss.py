"""Cross-entropy on the device, and the head with its loss: launches of loss.cu around cuBLAS.

Nothing is read by the host: targets are checked in the kernels, which stop the launch where one is no class,
and a mean over no row is nan, where the reference forms raise ValueError.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds import settings
from tinygrad_ds.kernels.cuda.common import as_rows, contiguous, covered, launch, real_of

ROWS = 1024  # of logits at once in the head
THREADS = (256,)


class CrossEntropySaved(NamedTuple):
    """The logits and one number for each row."""

    logits: cupy.ndarray  # (rows, V)
    lse: cupy.ndarray  # (rows,)  log sum_v exp(logits_v)
    targets: cupy.ndarray  # (...)
    divisor: cupy.ndarray | None  # 0-d: rows that count, for the mean
    ignored: int


def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    if (
        not covered(logits, narrow=True)
        or not _fits(logits, targets)
        or reduction not in ("mean", "sum", "none")
    ):
        return NotImplemented
    z, t, kind, real = as_rows(logits), _flat(targets), logits.dtype, real_of(logits)
    losses, lse = cupy.empty(len(z), real), cupy.empty(len(z), real)
    launch("loss.forward", (len(z),), THREADS, z, t, losses, lse, z.shape[1], ignore_index, dtype=kind)
    if reduction == "none":
        losses = losses.astype(kind, copy=False).reshape(targets.shape)
        return losses, CrossEntropySaved(z, lse, t.reshape(targets.shape), None, ignore_index)
    total, counted = _added(losses, t, ignore_index, kind)
    if reduction == "sum":
        total = total.astype(kind, copy=False)
        return total, CrossEntropySaved(z, lse, t.reshape(targets.shape), None, ignore_index)
    mean = cupy.divide(total, counted).astype(kind, copy=False)
    return mean, CrossEntropySaved(z, lse, t.reshape(targets.shape), counted, ignore_index)


def cross_entropy_backward(saved, g):
    z, lse, t, divisor, ignored = saved
    grad = cupy.empty_like(z)
    arrays = contiguous(g), z, lse, t, divisor, grad
    launch("loss.backward", (len(z),), THREADS, *arrays, z.shape[1], ignored, int(g.ndim > 0), dtype=z.dtype)
    return grad.reshape(*t.shape, z.shape[1]), None


class LinearCrossEntropySaved(NamedTuple):
    """The gradients of the sum of the losses."""

    grad_x: cupy.ndarray  # (..., d)
    grad_weight: cupy.ndarray  # (V, d)
    divisor: cupy.ndarray | None  # 0-d: rows that count, for the mean


def linear_cross_entropy(x, weight, targets, *, ignore_index=-100, reduction="mean"):
    """As on the CPU: logits of some rows at a time, made, used and forgotten, both gradients at once."""
    if not x.ndim or not covered(x, weight) or x.shape[-1] != weight.shape[-1]:
        return NotImplemented
    if reduction not in ("mean", "sum") or not _fits(x, targets):
        return NotImplemented
    rows, t, kind = as_rows(x), _flat(targets), x.dtype
    recording = settings.current().recording
    losses, logits = cupy.empty(len(rows), kind), cupy.empty((min(len(rows), ROWS), len(weight)), kind)
    grad_x, grad_weight = cupy.empty_like(rows if recording else rows[:0]), None
    for start in range(0, len(rows), ROWS):
        chunk = slice(start, start + ROWS)
        z = logits[: len(rows[chunk])]
        cupy.matmul(rows[chunk], weight.T, out=z)
        arguments = z, t[chunk], losses[chunk], z.shape[1], ignore_index, int(recording)
        launch("loss.in_place", (len(z),), THREADS, *arguments, dtype=kind)
        if recording:
            cupy.matmul(z, weight, out=grad_x[chunk])
            more = z.T @ rows[chunk]
            grad_weight = more if grad_weight is None else cupy.add(grad_weight, more, out=grad_weight)
    total, counted = _added(losses, t, ignore_index, kind)
    result = cupy.divide(total, counted) if reduction == "mean" else total
    if not recording:
        return result, None
    divisor = counted if reduction == "mean" else None
    return result, LinearCrossEntropySaved(grad_x.reshape(x.shape), grad_weight, divisor)


def linear_cross_entropy_backward_input(saved, g):
    return saved.grad_x * _shared(saved, g), None, None


def linear_cross_entropy_backward_weight(saved, g):
    return None, saved.grad_weight * _shared(saved, g), None


def _shared(saved, g):
    return g if saved.divisor is None else g / saved.divisor


def _fits(x, targets):
    """Whether there is one whole number for each row; what does not fit is the reference's to explain."""
    return targets.dtype.kind in "iu" and x.shape[:-1] == targets.shape


def _flat(targets):
    return contiguous(targets.astype(cupy.int64, copy=False)).reshape(-1)


def _added(losses, t, ignored, kind):
    """The sum of the losses and the number of targets that count, both 0-d."""
    total, counted = cupy.empty((), losses.dtype), cupy.empty((), losses.dtype)
    launch("loss.add_up", (1,), THREADS, losses, t, total, counted, len(t), ignored, dtype=kind)
    return total, counted
