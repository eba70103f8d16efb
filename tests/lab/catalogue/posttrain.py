"""Wrong answers to the exercises of post-training."""

import numpy as np

from tests.lab import answers
from tests.lab.catalogue.making import wrong


@wrong("clipped_objective", "mask")
def clipped_objective_never_clips(saved, g):
    rho, a, _, _ = saved
    return -g * a * rho, None, None


@wrong("clipped_objective", "mask")
def clipped_objective_clips_both_sides(saved, g):
    rho, a, low, high = saved
    return np.where((rho < low) | (rho > high), 0, -g * a * rho), None, None


@wrong("clipped_objective", "mask")
def clipped_objective_other_branch(saved, g):
    rho, a, low, high = saved
    return np.where(np.where(a > 0, rho > high, rho < low), -g * a * rho, 0), None, None


@wrong("clipped_objective", "term")
def clipped_objective_without_rho(saved, g):
    rho, a, low, high = saved
    return np.where(np.where(a > 0, rho > high, rho < low), 0, -g * a), None, None


@wrong("clipped_objective", "sign")
def clipped_objective_sign(saved, g):
    return -answers.clipped_objective(saved, g)[0], None, None


@wrong("clipped_objective", "none")
def clipped_objective_moves_the_old_policy(saved, g):
    grad = answers.clipped_objective(saved, g)[0]
    return grad, -grad, None


@wrong("k3", "term", "sign")
def k3_by_the_reference(saved, g):
    (d,) = saved
    return g * (np.exp(d) - 1), None


@wrong("k3", "term", "missing factor")
def k3_forgets_the_exponential(saved, g):
    return g + 0.0, None


@wrong("k3", "term")
def k3_forgets_d(saved, g):
    (d,) = saved
    return -g * np.exp(d), None


@wrong("k3", "term")
def k3_other_direction(saved, g):
    (d,) = saved
    return g * (np.exp(-d) - 1), None


@wrong("jensen_shannon", "swapped")
def jensen_shannon_weights_exchanged(saved, g):
    q, p, log_q, log_p, beta = saved
    if beta in (0, 1):
        return answers.jensen_shannon(saved, g)
    a = beta * (log_q - np.log((1 - beta) * p + beta * q))
    return g * q * (a - (q * a).sum(axis=-1, keepdims=True)), None


@wrong("jensen_shannon", "swapped")
def jensen_shannon_directions_exchanged(saved, g):
    q, p, log_q, log_p, beta = saved
    return answers.jensen_shannon((q, p, log_q, log_p, 1 - beta if beta in (0, 1) else beta), g)


@wrong("jensen_shannon", "jacobian", "term")
def jensen_shannon_diagonal_only(saved, g):
    q, p, log_q, log_p, beta = saved
    a = {0: -p / q, 1: log_q - log_p}.get(beta)
    if a is None:
        a = (1 - beta) * (log_q - np.log(beta * p + (1 - beta) * q))
    return g * q * (1 - q) * a, None


@wrong("jensen_shannon", "term")
def jensen_shannon_mixture_constant(saved, g):
    q, p, log_q, log_p, beta = saved
    if beta in (0, 1):
        return answers.jensen_shannon(saved, g)
    m = beta * p + (1 - beta) * q
    a = (1 - beta) * (log_q - np.log(m)) - beta * (1 - beta) * p / m
    return g * q * (a - (q * a).sum(axis=-1, keepdims=True)), None


@wrong("jensen_shannon", "factor")
def jensen_shannon_mean_over_rows(saved, g):
    return answers.jensen_shannon(saved, g)[0] / len(saved[0]), None
