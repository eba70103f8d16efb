"""Cases for ops/loss.py and ops/head.py."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, composition, reals, shapes, strategy


def some_targets(draw, reduction):
    """Targets of any shape, how many classes there are, and what stands for "ignored".

    Some rows count and some do not; a mean has at least one that counts.
    """
    shape = draw(shapes(max_dims=2, min_side=1 if reduction == "mean" else 0))
    classes, ignored = draw(st.integers(1, 6)), draw(st.sampled_from([-100, -1, 0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = np.asarray(rng.integers(0, classes, size=shape))
    targets[rng.random(shape) < 0.3] = ignored
    if reduction == "mean" and (targets == ignored).all():
        targets[...] = classes - 1
        ignored = -100
    return targets, classes, ignored


@strategy("cross_entropy")
@st.composite
def cross_entropy_cases(draw):
    """No class is nearly certain: there the gradient is next to nothing, and float32 could not show it."""
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    targets, classes, ignored = some_targets(draw, reduction)
    options = {"ignore_index": ignored, "reduction": reduction}
    return Case((draw(reals((*targets.shape, classes), low=-1.5, high=1.5)), targets), options)


@composition("cross_entropy")
def cross_entropy_composed(logits, targets, *, ignore_index, reduction):
    counted = targets.data != ignore_index
    known = np.where(counted, targets.data, 0)
    picked = tg.take_along_axis(tg.log_softmax(logits), known[..., None], axis=-1)
    losses = tg.where(counted, -picked.reshape(counted.shape), 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / (int(counted.sum()) if reduction == "mean" else 1)


@strategy("linear_cross_entropy")
@st.composite
def linear_cross_entropy_cases(draw):
    """As for cross_entropy, with logits from vectors of up to three numbers."""
    reduction = draw(st.sampled_from(["mean", "sum"]))
    targets, classes, ignored = some_targets(draw, reduction)
    d = draw(st.integers(0, 3))
    x = draw(reals((*targets.shape, d), low=-0.8, high=0.8))
    weight = draw(reals((classes, d), low=-0.8, high=0.8))
    return Case((x, weight, targets), {"ignore_index": ignored, "reduction": reduction})


@composition("linear_cross_entropy")
def linear_cross_entropy_composed(x, weight, targets, **options):
    return cross_entropy_composed(tg.matmul(x, weight.transpose()), targets, **options)
