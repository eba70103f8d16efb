"""Cases for ops/loss.py."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, composition, reals, shapes, strategy


@strategy("cross_entropy")
@st.composite
def cross_entropy_cases(draw):
    """Rows that count and rows that do not; a mean has at least one that counts.

    No class is nearly certain: there the gradient p - 1 is next to nothing, and float32 could not show it.
    """
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    shape = draw(shapes(max_dims=2, min_side=1 if reduction == "mean" else 0))
    classes, ignored = draw(st.integers(1, 6)), draw(st.sampled_from([-100, -1, 0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets = np.asarray(rng.integers(0, classes, size=shape))
    targets[rng.random(shape) < 0.3] = ignored
    if reduction == "mean" and (targets == ignored).all():
        targets[...] = classes - 1
        ignored = -100
    options = {"ignore_index": ignored, "reduction": reduction}
    return Case((draw(reals((*shape, classes), low=-1.5, high=1.5)), targets), options)


@composition("cross_entropy")
def cross_entropy_composed(logits, targets, *, ignore_index, reduction):
    counted = targets.data != ignore_index
    known = np.where(counted, targets.data, 0)
    picked = tg.take_along_axis(tg.log_softmax(logits), known[..., None], axis=-1)
    losses = tg.where(counted, -picked.reshape(counted.shape), 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / (int(counted.sum()) if reduction == "mean" else 1)
