"""Above the network: what reinforcement and distillation differentiate."""

import numpy as np

import tinygrad_ds as tg
from lab.cases import Case, Draw
from lab.cases.posttrain import BOUNDS
from lab.exercises.making import exercise
from tinygrad_ds import Tensor


def clipped_cases(draw: Draw) -> Case:
    """Completions with ratios on both sides of the clip."""
    rows, time = draw.size("batch"), draw.size("time")
    logp = draw.reals(rows, time, low=-2.5, high=-0.3)
    gain = draw.reals(rows, time, low=-0.6, high=0.6, kinks=BOUNDS)
    advantages = draw.reals(rows, low=-1.5, high=1.5, kinks=(0.0,))
    return Case((logp, logp - gain, advantages), {"low": 0.8, "high": 1.28})


def clipped_of(logp: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """The clipped part of GRPO's loss, from small primitives."""
    rho, a = tg.exp(logp - old.data), advantages.data[:, None]
    return -tg.minimum(rho * a, tg.clip(rho, low=low, high=high) * a)


@exercise(
    "clipped_objective",
    after=("exp", "multiply", "max"),
    hint="Which of the two is smaller? Where it is the clipped one, rho stands at a bound and does not move.",
    function=clipped_of,
    maker=clipped_cases,
)
def clipped_objective(logp, old, advantages, *, low, high):
    """What PPO and GRPO make of a token: y = -min(rho A, clip(rho, low, high) A), rho = e^(logp - old).

    logp, old (N, T), advantages A (N,), one for all tokens of a completion -> y (N, T).
    Return (grad_logp, None, None): the old policy and the advantages are constants.
    """
    rho, a = np.exp(logp - old), advantages[:, None]
    return -np.minimum(rho * a, np.clip(rho, low, high) * a), (rho, a, low, high)


def k3_cases(draw: Draw) -> Case:
    """Two policies that disagree."""
    shape = draw.size("batch"), draw.size("time")
    logp = draw.reals(*shape, low=-2.5, high=-0.3)
    return Case((logp, logp + draw.reals(*shape, low=-1.0, high=1.0, kinks=(0.0,))))


def k3_of(logp: Tensor, ref: Tensor) -> Tensor:
    """The estimator, from small primitives."""
    d = ref.data - logp
    return tg.exp(d) - d - 1


@exercise(
    "k3",
    after=("exp", "add"),
    hint="d = ref - logp falls when logp rises. What must the slope be where both policies agree?",
    function=k3_of,
    maker=k3_cases,
)
def k3(logp, ref):
    """The estimate of KL(policy || reference) from one token: y = e^d - d - 1, d = ref - logp.

    logp, ref (N, T) -> y (N, T), never below 0. Return (grad_logp, None): the reference is a constant.
    """
    d = ref - logp
    return np.exp(d) - d - 1, (d,)


def jensen_shannon_cases(draw: Draw) -> Case:
    """Rows of logits of a student and a teacher, from forward to reverse."""
    shape = draw.size("time"), draw.size("vocab", least=2)
    student, teacher = (draw.reals(*shape, low=-1.5, high=1.5) for _ in range(2))
    return Case((student, teacher), {"beta": draw.among(0.5, 0.0, 1.0, 0.3)})


def jensen_shannon_of(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """The primitive over rows that all count."""
    labels = np.zeros(student.shape[0], dtype=np.int64)
    return tg.jensen_shannon(student, teacher, labels, beta=beta, reduction="sum")


@exercise(
    "jensen_shannon",
    after=("log_softmax", "cross_entropy"),
    hint="First dD/dq, in which q stands in m too; much of it cancels. Then through the softmax.",
    function=jensen_shannon_of,
    maker=jensen_shannon_cases,
)
def jensen_shannon(student, teacher, *, beta):
    """D = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, summed over the rows.

    q = softmax(student), p = softmax(teacher), both logits (N, V). beta = 0 means KL(p || q), the forward
    one, and beta = 1 means KL(q || p). Return (grad_student, None): the teacher is a constant.
    """

    def log_softmax(x):
        z = x - x.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    log_q, log_p = log_softmax(student), log_softmax(teacher)
    q, p = np.exp(log_q), np.exp(log_p)
    if beta == 0:
        y = (p * (log_p - log_q)).sum()
    elif beta == 1:
        y = (q * (log_q - log_p)).sum()
    else:
        log_m = np.log(beta * p + (1 - beta) * q)
        y = (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum()
    return y, (q, p, log_q, log_p, beta)
