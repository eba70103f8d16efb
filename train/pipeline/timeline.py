"""When every step of a schedule began and ended, simulated or measured, and what that says of its ranks."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from train.pipeline.memory import most_alive
from train.pipeline.steps import AnyStep, Schedule


class Span(NamedTuple):
    """A step on the clock."""

    rank: int
    step: AnyStep
    start: float
    end: float


class Timeline:
    """`starts` and `ends` have for each rank a number for each of its steps."""

    def __init__(
        self, schedule: Schedule, starts: Sequence[Sequence[float]], ends: Sequence[Sequence[float]]
    ) -> None:
        self.schedule = schedule
        self.starts = starts
        self.ends = ends

    @cached_property
    def length(self) -> float:
        """From the beginning of the first step to the end of the last."""
        return max(map(max, self.ends)) - min(map(min, self.starts))

    @cached_property
    def busy(self) -> list[float]:
        """For every rank, the time in steps."""
        return [sum(ends) - sum(starts) for starts, ends in zip(self.starts, self.ends)]

    @property
    def idle(self) -> list[float]:
        """For every rank, the rest."""
        return [self.length - busy for busy in self.busy]

    @property
    def bubble(self) -> float:
        """The idle time of the rank that idles most."""
        return max(self.idle)

    @cached_property
    def peak_memory(self) -> list[int]:
        """For every rank, the most stage inputs alive at once."""
        return most_alive(self.schedule)

    @property
    def spans(self) -> list[Span]:
        """All steps, rank by rank."""
        return [
            Span(rank, step, start, end)
            for rank, steps in enumerate(self.schedule)
            for step, start, end in zip(steps, self.starts[rank], self.ends[rank])
        ]
