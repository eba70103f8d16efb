"""How long steps take: what a simulation is told, and what follows from it for every step of a schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from train.pipeline.messages import stage_count
from train.pipeline.steps import AnyStep, B, F, I, Overlap, Schedule, ScheduleError, W

PerStage: TypeAlias = float | Sequence[float]
"""One number for all stages, or one for each in the order of the network; likewise for ranks."""


class StageTimes(NamedTuple):
    """The times of passes, by stage; numbers, or arrays of them for many choices at once."""

    F: Sequence[Any]
    I: Sequence[Any]  # noqa: E741  the letters of the literature
    W: Sequence[Any]
    B: Sequence[Any]
    all_to_all: Sequence[Any]
    FB: Sequence[Any] | None = None

    def of(self, schedule: Schedule, larger: Callable[[Any, Any], Any] = max) -> list[list[Any]]:
        """The time of every step of every rank. larger: the larger of two times."""
        alone = {
            F: [f + a for f, a in zip(self.F, self.all_to_all)],
            B: [b + a for b, a in zip(self.B, self.all_to_all)],
            I: [i + a for i, a in zip(self.I, self.all_to_all)],
            W: self.W,
        }
        exchange, pairs = self.all_to_all, self.FB

        def pair(ahead: int, back: int) -> Any:
            if pairs is not None:
                return pairs[ahead]
            return larger(self.F[ahead] + self.B[back], exchange[ahead] + exchange[back])

        def time(step: AnyStep) -> Any:
            if isinstance(step, Overlap):
                return pair(step.forward.stage, step.backward.stage)
            return alone[step.kind][step.stage]

        return [[time(step) for step in steps] for steps in schedule]


@dataclass(frozen=True)
class Times:
    """What passes cost, in any unit of time.

    Alone, a pass forward takes F and its all-to-all (dispatch and combine, waited for); so does a pass
    backward, whose weight half W sends nothing. In F&B the two all-to-alls run beside the products of both,
    so it takes the longer of the two, unless `FB` says what it takes.
    """

    F: PerStage = 1.0
    I: PerStage = 1.0  # noqa: E741  the letters of the literature
    W: PerStage = 1.0
    B: PerStage | None = None  # I + W where it is not given
    FB: PerStage | None = None  # by the stage that goes forward
    all_to_all: PerStage = 0.0  # of one pass, forward or backward
    slowdown: float | Sequence[float] = 1.0  # for each rank: 1.1 is a straggler that takes a tenth longer

    def by_stage(self, count: int, what: str = "stages") -> StageTimes:
        """One number for each of `count` stages."""
        first, second = spread("I", self.I, count, what), spread("W", self.W, count, what)
        whole = [i + w for i, w in zip(first, second)] if self.B is None else spread("B", self.B, count, what)
        return StageTimes(
            F=spread("F", self.F, count, what),
            I=first,
            W=second,
            B=whole,
            all_to_all=spread("all_to_all", self.all_to_all, count, what),
            FB=None if self.FB is None else spread("FB", self.FB, count, what),
        )

    def of(self, schedule: Schedule) -> list[list[float]]:
        """The time of every step of every rank."""
        slow = spread("slowdown", self.slowdown, len(schedule), "ranks")
        even = self.by_stage(stage_count(schedule)).of(schedule)
        return [[time * factor for time in rank] for rank, factor in zip(even, slow)]


def spread(name: str, value: PerStage, count: int, what: str) -> list[float]:
    """One number for each of `count` stages, layers or ranks."""
    numbers = (
        [float(value)] * count if isinstance(value, (int, float)) else [float(number) for number in value]
    )
    if len(numbers) != count:
        raise ScheduleError(
            f"{name} has {len(numbers)} numbers for {count} {what}: give one for each, or a single one"
        )
    for number in numbers:
        if not 0 <= number < float("inf"):
            raise ScheduleError(f"{name} is {number}: times are finite and at least 0")
    return numbers
