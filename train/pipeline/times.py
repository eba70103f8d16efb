"""How long steps take: what a simulation is told, and what follows from it for every step of a schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from train.pipeline.messages import stage_count
from train.pipeline.steps import AnyStep, F, I, Overlap, Schedule, ScheduleError, W

PerStage: TypeAlias = float | Sequence[float]
"""One number for all stages, or one for each in the order of the network; likewise for ranks."""


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

    def of(self, schedule: Schedule) -> list[list[float]]:
        """The time of every step of every rank."""
        stages = stage_count(schedule)
        forward, first, second, exchange = (
            spread(name, value, stages, "stages")
            for name, value in (("F", self.F), ("I", self.I), ("W", self.W), ("all_to_all", self.all_to_all))
        )
        whole = (
            [i + w for i, w in zip(first, second)]
            if self.B is None
            else spread("B", self.B, stages, "stages")
        )
        both = None if self.FB is None else spread("FB", self.FB, stages, "stages")
        slow = spread("slowdown", self.slowdown, len(schedule), "ranks")

        def pair(ahead: int, back: int) -> float:
            if both is not None:
                return both[ahead]
            return max(forward[ahead] + whole[back], exchange[ahead] + exchange[back])

        alone = {
            F: [f + a for f, a in zip(forward, exchange)],
            "B": [b + a for b, a in zip(whole, exchange)],
            I: [i + a for i, a in zip(first, exchange)],
            W: second,
        }

        def time(step: AnyStep) -> float:
            if isinstance(step, Overlap):
                return pair(step.forward.stage, step.backward.stage)
            return alone[step.kind][step.stage]

        return [[time(step) * factor for step in steps] for steps, factor in zip(schedule, slow)]


def spread(name: str, value: PerStage, count: int, what: str) -> list[float]:
    """One number for each of `count` stages or ranks."""
    numbers = (
        [float(value)] * count if isinstance(value, (int, float)) else [float(number) for number in value]
    )
    if len(numbers) != count:
        raise ScheduleError(
            f"{name} has {len(numbers)} numbers for {count} {what}: give one for each, or a single one"
        )
    if not all(0 <= number < float("inf") for number in numbers):
        bad = next(number for number in numbers if not 0 <= number < float("inf"))
        raise ScheduleError(f"{name} is {bad}: times are finite and at least 0")
    return numbers
