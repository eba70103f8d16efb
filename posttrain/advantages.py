"""From the rewards of a group of completions to the advantage of each."""

import numpy as np

EPS = 1e-4
ROUNDING = 1e-9  # rewards that differ by less, in parts of the largest, are equal


def group_advantages(rewards: np.ndarray, group: int, *, scale: bool = True) -> np.ndarray:
    """A_i = (R_i - mean R) / (std R + 1e-4) over each group of completions of one prompt.

    rewards (N,), those of a group behind each other -> (N,). std is that of a sample (n - 1); scale=False
    leaves the division out (Dr. GRPO). All rewards of a group equal but for rounding: exactly 0, for what is
    left of their difference would be divided by itself.
    """
    grouped = grouped_by(rewards, group)
    a = grouped - grouped.mean(axis=1, keepdims=True)
    if scale:
        a = a / (grouped.std(axis=1, ddof=1, keepdims=True) + EPS) if group > 1 else a
    return np.where(has_signal(rewards, group)[:, None], a, 0.0).reshape(-1)


def has_signal(rewards: np.ndarray, group: int) -> np.ndarray:
    """(groups,) whether the rewards of a group differ."""
    grouped = grouped_by(rewards, group)
    apart = grouped.max(axis=1) - grouped.min(axis=1)
    return apart > ROUNDING * np.abs(grouped).max(axis=1)


def grouped_by(rewards: np.ndarray, group: int) -> np.ndarray:
    """(groups, group). ValueError where that does not come out even."""
    if group < 1 or rewards.ndim != 1 or len(rewards) % group:
        raise ValueError(f"rewards have shape {rewards.shape}, which are no groups of {group}")
    return np.asarray(rewards, dtype=np.float64).reshape(-1, group)
