"""How far a student's distribution is from a teacher's: the generalised Jensen-Shannon divergence."""

import math
from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.activation import log_softmax
from tinygrad_ds.ops.broadcast import Form, fit, form
from tinygrad_ds.primitive import primitive


class JensenShannonSaved(NamedTuple):
    """What the derivative reads: N rows count."""

    q: Array  # (N, V)  the student's probabilities
    grad_q: Array  # (N, V)  dD/dq, up to a constant along each row, times q
    counted: Array  # (...) bool
    scale: float  # 1 / temperature, over N for the mean
    forms: tuple[Form, Form, Form]  # of the arrays


@primitive
def jensen_shannon(
    student_logits, teacher_logits, labels, *, beta=0.5, temperature=1.0, ignore_index=-100, reduction="mean"
):
    """The divergence between a student's and a teacher's next tokens, over the rows that count.

    student_logits, teacher_logits (..., V); labels (...), integers: a row counts unless it is ignore_index,
    and its label says nothing else -> the mean over the rows that count, or their sum.  Agarwal et al. 2024
    (on-policy distillation, section 3).

        q = softmax(student / temperature),  p = softmax(teacher / temperature)
        beta 0:  KL(p || q),  forward: the student must cover all that the teacher may say
        beta 1:  KL(q || p),  reverse: the student must say nothing that the teacher would not
        between: beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

    It is 0 where both agree, and no factor temperature^2 is applied. ValueError for shapes that do not match,
    a beta or temperature that cannot be, and a mean over no row at all.
    """
    xp = namespace(student_logits)
    check_divergence(student_logits, teacher_logits, labels, beta, temperature, reduction)
    counted = labels != ignore_index
    if reduction == "mean" and not counted.any():
        raise ValueError(f"all {labels.size} labels are {ignore_index}, so there is no row to average")
    log_q = log_softmax.forward(student_logits[counted] / temperature)[0]  # (N, V)
    log_p = log_softmax.forward(teacher_logits[counted] / temperature)[0]
    q, p = xp.exp(log_q), xp.exp(log_p)
    if beta == 0:
        total, grad_q = _kl(p, log_p, log_q), -p
    elif beta == 1:
        total, grad_q = _kl(q, log_q, log_p), q * (log_q - log_p)
    else:
        log_m = xp.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        total = beta * _kl(p, log_p, log_m) + (1 - beta) * _kl(q, log_q, log_m)
        grad_q = (1 - beta) * q * (log_q - log_m)
    rows = max(len(q), 1) if reduction == "mean" else 1
    forms = form(student_logits), form(teacher_logits), form(labels)
    return total / rows, JensenShannonSaved(q, grad_q, counted, 1 / (temperature * rows), forms)


@jensen_shannon.backward
def jensen_shannon_backward(saved, g):
    """From g = dL/dD to the student's logits s; the teacher's are constants. First one row, over V tokens.

    q = softmax(s / T) gives dq_v/ds_u = q_v ([v = u] - q_u) / T, so with a_v = dD/dq_v
        dD/ds_u = q_u (a_u - sum_v q_v a_v) / T.
    A constant in a falls out, since q sums to 1.

    forward,  D = sum p (ln p - ln q):     a = -p / q,          q a = -p
              and with sum q a = -1:       dD/ds = (q - p) / T, as for cross-entropy with soft targets
    reverse,  D = sum q (ln q - ln p):     a = ln q - ln p + 1
    between,  D = beta sum p (ln p - ln m) + (1 - beta) sum q (ln q - ln m),  dm/dq = 1 - beta:
        a = -beta (1 - beta) p / m  +  (1 - beta) (ln q - ln m + 1)  -  (1 - beta)^2 q / m
          = (1 - beta) (ln q - ln m + 1) - (1 - beta) (beta p + (1 - beta) q) / m
          = (1 - beta) (ln q - ln m),      for the mixture over itself is 1.
    Each row of the gradient sums to 0; where p = q it is 0.
    """
    q, grad_q, counted, scale, forms = saved
    xp = namespace(q)
    rows = g * scale * (grad_q - q * grad_q.sum(axis=-1, keepdims=True))
    grad = xp.zeros(forms[0].shape, dtype=forms[0].dtype)
    grad[counted] = fit(rows, Form(rows.shape, forms[0].dtype))
    return grad, None, None


def _kl(p: Array, log_p: Array, log_q: Array) -> Array:
    """sum p (ln p - ln q) over all rows; what p leaves out counts nothing."""
    xp = namespace(p)
    return (p * xp.where(p > 0, log_p - log_q, xp.zeros_like(p))).sum()


def check_divergence(
    student: Array, teacher: Array, labels: Array, beta: float, temperature: float, reduction: str
) -> None:
    """Raise ValueError for arrays that do not belong together and options that cannot be."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_logits have shape {student.shape} but teacher_logits {teacher.shape}: both must "
            "have the same rows and one vocabulary"
        )
    if labels.dtype.kind not in "iu" or labels.shape != student.shape[:-1]:
        raise ValueError(
            f"labels are {labels.dtype}{labels.shape} but logits {student.shape} need integers of shape "
            f"{student.shape[:-1]}"
        )
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta} but must be from 0 (forward) to 1 (reverse)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} but must be above 0")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r} but must be mean or sum")
