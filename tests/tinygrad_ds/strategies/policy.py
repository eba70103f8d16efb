"""Cases for ops/policy.py and ops/divergence.py."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import MARGIN, Case, composition, reals, shapes, strategy


@strategy("grpo_objective")
@st.composite
def grpo_objective_cases(draw):
    """Rows of any length, empty ones too; no ratio near a bound of the clip."""
    rows, time = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    logp, ref = (draw(reals((rows, time), low=-2.5, high=-0.1)) for _ in range(2))
    old = logp - draw(reals((rows, time), low=-0.6, high=0.6))
    advantages = draw(reals((rows,), low=-1.5, high=1.5, kinks=(0.0,)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((rows, time)) < 0.7
    mask[0, 0] = True
    options = {
        "beta": draw(st.sampled_from([0.0, 0.1, 0.7])),
        "eps_low": 0.2,
        "eps_high": draw(st.sampled_from([0.2, 0.28])),
        "aggregate": draw(st.sampled_from(["grpo", "bnpo", "dr_grpo"])),
        "ratio": draw(st.sampled_from(["token", "sequence"])),
        "max_length": 7,
        "weighted_k3": draw(st.booleans()),
        "count": draw(st.sampled_from([None, 11])),
    }
    n = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    for bound in (1 - options["eps_low"], 1 + options["eps_high"]):
        gain = logp - old if options["ratio"] == "token" else ((logp - old) * mask).sum(1, keepdims=True) / n
        old -= np.where(np.abs(gain - np.log(bound)) < 4 * MARGIN, 20 * MARGIN, 0.0)
    arrays = logp, old, advantages, mask
    return Case((*arrays, ref) if draw(st.booleans()) else arrays, options)


@composition("grpo_objective")
def grpo_objective_composed(
    logp, old, advantages, mask, ref=None, *, beta, eps_low, eps_high, aggregate, ratio, **options
):
    inside, a = mask.data.astype(logp.dtype), advantages.data[:, None]
    n = inside.sum(axis=1, keepdims=True)
    gain = (logp - old.data) * inside
    if ratio == "sequence":
        gain = gain.sum(axis=1, keepdims=True) / np.maximum(n, 1) + 0 * gain
    rho = tg.exp(gain)
    losses = -tg.minimum(rho * a, tg.clip(rho, low=1 - eps_low, high=1 + eps_high) * a)
    if ref is not None:
        behind = ref.data - logp
        k3 = tg.exp(behind) - behind - 1
        losses = losses + beta * (k3 * rho if options["weighted_k3"] else k3)
    divisor = {
        "bnpo": options["count"] or n.sum(),
        "grpo": np.maximum(n, 1) * (options["count"] or len(n)),
        "dr_grpo": (options["count"] or len(n)) * options["max_length"],
    }[aggregate]
    return (losses * (inside / divisor)).sum()


@strategy("jensen_shannon")
@st.composite
def jensen_shannon_cases(draw):
    """Distributions that differ everywhere, and rows that do not count."""
    reduction = draw(st.sampled_from(["mean", "sum"]))
    shape = draw(shapes(max_dims=2, min_side=1 if reduction == "mean" else 0))
    classes, ignored = draw(st.integers(3, 6)), draw(st.sampled_from([-100, -1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.asarray(rng.integers(0, classes, size=shape))
    labels[rng.random(shape) < 0.3] = ignored
    if labels.size:
        labels[(0,) * labels.ndim] = 0
    student, teacher = (draw(reals((*shape, classes), low=-1.0, high=1.0)) for _ in range(2))
    teacher = teacher - student[..., ::-1] + np.linspace(-0.5, 0.7, classes)
    options = {
        "beta": draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])),
        "temperature": draw(st.sampled_from([1.0, 2.0])),
        "ignore_index": ignored,
        "reduction": reduction,
    }
    return Case((student, teacher, labels), options)


@composition("jensen_shannon")
def jensen_shannon_composed(student, teacher, labels, *, beta, temperature, ignore_index, reduction):
    counted = labels.data != ignore_index
    log_q = tg.log_softmax(student / temperature)
    log_p = tg.log_softmax(teacher.detach() / temperature)
    if beta == 0:
        each = tg.exp(log_p) * (log_p - log_q)
    elif beta == 1:
        each = tg.exp(log_q) * (log_q - log_p)
    else:
        log_m = tg.log(beta * tg.exp(log_p) + (1 - beta) * tg.exp(log_q))
        each = beta * tg.exp(log_p) * (log_p - log_m) + (1 - beta) * tg.exp(log_q) * (log_q - log_m)
    total = (each * counted[..., None]).sum()
    return total / int(counted.sum()) if reduction == "mean" else total
