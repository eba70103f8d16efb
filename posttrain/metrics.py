"""What is said of a model's answers, each figure with the number of samples and its standard error."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Figure(NamedTuple):
    """A mean, its standard error, and how many independent things it is a mean of."""

    value: float
    error: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f} (n={self.n})"


def figure(values: Any) -> Figure:
    """The mean of independent values; the error of one value alone, or of none, is nan."""
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Figure(float(values.mean()) if count else math.nan, error, count)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers is right, from n of which c are: 1 - C(n - c, k) / C(n, k).

    Unbiased (Chen et al. 2021), unlike 1 - (1 - c/n)^k. ValueError where k answers are not among n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c is {c} but must be from 0 to n, which is {n}: the right ones among n answers")
    if not 1 <= k <= n:
        raise ValueError(
            f"k is {k} but n is {n}: pass@k needs at least k answers to a prompt, and k at least 1"
        )
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def cons_at_k(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """Whether the answer that most samples gave is right; of answers that tie each counts as its share.

    answers: None where a sample has none, which is no vote. right: whether each is right. The order plays no
    part. No votes at all: 0.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    known = {answer: bool(good) for answer, good in zip(answers, right, strict=True) if answer in winners}
    return sum(known.values()) / len(winners)
