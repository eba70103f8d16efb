"""What the usual mistakes in the losses of post-training compute, so that the grader knows them."""

import numpy as np

from lab.exercises.making import slip
from lab.exercises.slips import soft


def clipped(g, logp, old, advantages, low, high):
    """g, rho, A, and whether the unclipped product is the smaller one."""
    rho, a = np.exp(logp - old), advantages[:, None]
    return g, rho, a, rho * a <= np.clip(rho, low, high) * a


@slip("clipped_objective", "mask", "the gradient passes everywhere, but not where the clip is what counts")
def _(g, logp, old, advantages, *, low, high):
    g, rho, a, _ = clipped(g, logp, old, advantages, low, high)
    return -g * a * rho, None, None


@slip(
    "clipped_objective",
    "mask",
    "the gradient stops on both sides, but a good token below, or a bad one above, pulls",
)
def _(g, logp, old, advantages, *, low, high):
    g, rho, a, _ = clipped(g, logp, old, advantages, low, high)
    return -g * a * rho * ((rho >= low) & (rho <= high)), None, None


@slip(
    "clipped_objective",
    "mask",
    "the gradient passes where the clipped product is the smaller one, and stops elsewhere",
)
def _(g, logp, old, advantages, *, low, high):
    g, rho, a, free = clipped(g, logp, old, advantages, low, high)
    return -g * a * rho * ~free, None, None


@slip("clipped_objective", "term", "rho is missing: the slope of rho = e^(logp - old) by logp is rho itself")
def _(g, logp, old, advantages, *, low, high):
    g, _, a, free = clipped(g, logp, old, advantages, low, high)
    return -g * a * free, None, None


@slip("k3", "term", "only d is differentiated: e^d moves too")
def _(g, logp, ref):
    return np.array(g), None


@slip("k3", "term", "only e^d is differentiated: the d that is taken away moves too")
def _(g, logp, ref):
    return -g * np.exp(ref - logp), None


@slip("k3", "term", "this is the slope by ref: d = ref - logp falls when logp rises")
def _(g, logp, ref):
    return g * (np.exp(ref - logp) - 1), None


@slip("k3", "term", "this is the slope of k3 with logp and ref exchanged, as for KL(reference || policy)")
def _(g, logp, ref):
    return g * (np.exp(logp - ref) - 1), None


def through_softmax(q, a):
    """dL/dz of q = softmax(z) from a = dL/dq."""
    return q * (a - (q * a).sum(axis=-1, keepdims=True))


def slopes(student, teacher, beta):
    """q, p, and the right dD/dq up to a constant."""
    q, p = soft(student), soft(teacher)
    if beta == 0:
        return q, p, -p / q
    if beta == 1:
        return q, p, np.log(q / p)
    return q, p, (1 - beta) * np.log(q / (beta * p + (1 - beta) * q))


@slip("jensen_shannon", "jacobian", "this is dD/dq: the step through the softmax is missing")
def _(g, student, teacher, *, beta):
    return g * slopes(student, teacher, beta)[2], None


@slip("jensen_shannon", "jacobian", "the softmax is taken for q (1 - q): every logit moves all of q")
def _(g, student, teacher, *, beta):
    q, _, a = slopes(student, teacher, beta)
    return g * a * q * (1 - q), None


@slip("jensen_shannon", "swapped", "the weights of the mixture are exchanged: beta weighs the teacher")
def _(g, student, teacher, *, beta):
    q, p, a = slopes(student, teacher, beta)
    if beta not in (0, 1):
        a = beta * np.log(q / ((1 - beta) * p + beta * q))
    return g * through_softmax(q, a), None


@slip("jensen_shannon", "swapped", "forward and reverse are exchanged: beta = 0 is KL(teacher || student)")
def _(g, student, teacher, *, beta):
    q, _, a = slopes(student, teacher, 1 - beta if beta in (0, 1) else beta)
    return g * through_softmax(q, a), None


@slip(
    "jensen_shannon",
    "term",
    "m is treated as a constant, but the student is part of it: its own KL moves m too",
)
def _(g, student, teacher, *, beta):
    q, p, a = slopes(student, teacher, beta)
    if beta not in (0, 1):
        a = a - beta * (1 - beta) * p / (beta * p + (1 - beta) * q)
    return g * through_softmax(q, a), None
