"""Cases for the objectives of post-training."""

import math

import numpy as np

from lab.cases.making import Case, Draw, case

BOUNDS = math.log(1 - 0.2), math.log(1 + 0.28)  # where the ratio is clipped


def rewarded(draw: Draw, sequence: bool) -> tuple[np.ndarray, ...]:
    """logp, old_logp, advantages, mask: ratios on both sides of the clip, none near a bound."""
    rows, time = draw.size("batch"), draw.size("time")
    logp = draw.reals(rows, time, low=-2.5, high=-0.3)
    mask = np.ones((rows, time), dtype=bool)
    if draw.sizes is None:
        mask = draw.random.random((rows, time)) < 0.75
        mask[0, 0] = True
    gain = draw.reals(rows, time, low=-0.6, high=0.6, kinks=BOUNDS)
    if sequence:  # the mean over a row is what must keep away
        n = np.maximum(mask.sum(axis=1, keepdims=True), 1)
        wanted = draw.reals(rows, 1, low=-0.6, high=0.6, kinks=BOUNDS)
        gain = gain + wanted - (gain * mask).sum(axis=1, keepdims=True) / n
    return logp, logp - gain, draw.reals(rows, low=-1.5, high=1.5, kinks=(0.0,)), mask


@case("grpo_objective")
def grpo_objective(draw: Draw) -> Case:
    """Completions of different lengths; with and without a reference."""
    ratio = draw.among("token", "sequence")
    arrays = rewarded(draw, ratio == "sequence")
    options = {"aggregate": draw.among("grpo", "bnpo", "dr_grpo"), "ratio": ratio, "max_length": 8}
    if not draw.among(True, False):
        return Case(arrays, options)
    ref = draw.reals(*arrays[0].shape, low=-2.5, high=-0.3)
    return Case(
        (*arrays, ref), options | {"beta": draw.among(0.1, 0.5), "weighted_k3": draw.among(False, True)}
    )


@case("jensen_shannon")
def jensen_shannon(draw: Draw) -> Case:
    """Teacher and student that disagree; rows that count and rows that do not."""
    shape = draw.lead() or (1,)
    classes = draw.size("vocab", least=2)
    labels = draw.integers(0, classes - 1, *shape)
    if draw.sizes is None:
        labels[draw.random.random(shape) < 0.25] = -100
        labels.flat[0] = 0
    student = draw.reals(*shape, classes, low=-1.5, high=1.5)
    teacher = draw.reals(*shape, classes, low=-1.5, high=1.5)
    options = {"beta": draw.among(0.5, 0.0, 1.0, 0.3), "temperature": draw.among(1.0, 2.0)}
    return Case((student, teacher, labels), options)
