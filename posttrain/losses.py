"""The losses of post-training on their own, for a notebook or a loop of one's own."""

from typing import Any

import tinygrad_ds as tg
from tinygrad_ds import Tensor


def grpo_loss(
    logp: Any,
    old_logp: Any,
    advantages: Any,
    mask: Any,
    ref_logp: Any = None,
    beta: float = 0.0,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    aggregate: str = "grpo",
    ratio: str = "token",
    max_length: int | None = None,
    weighted_k3: bool = False,
) -> Tensor:
    """The loss of group relative policy optimisation; see tg.grpo_objective. Its gradient is that of logp.

    logp, old_logp, mask, ref_logp (N, T), advantages (N,) -> 0-d. aggregate: grpo, bnpo or dr_grpo, which
    needs max_length, the most tokens that a completion may have. ratio: token, or sequence (GSPO).
    """
    arrays = (
        (logp, old_logp, advantages, mask)
        if ref_logp is None
        else (logp, old_logp, advantages, mask, ref_logp)
    )
    return tg.grpo_objective(
        *arrays,
        beta=beta,
        eps_low=eps_low,
        eps_high=eps_high,
        aggregate=aggregate,
        ratio=ratio,
        max_length=max_length,
        weighted_k3=weighted_k3,
    )


def kd_loss(
    student_logits: Any, teacher_logits: Any, labels: Any, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """The generalised Jensen-Shannon divergence from teacher to student; see tg.jensen_shannon.

    logits (batch, time, vocab), labels (batch, time): -100 where a position does not count -> 0-d, the mean
    over positions. beta 0 is forward KL, 1 reverse. Teacher logits are constants.
    """
    return tg.jensen_shannon(student_logits, teacher_logits, labels, beta=beta, temperature=temperature)
