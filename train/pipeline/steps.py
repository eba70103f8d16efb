"""The steps that a schedule is made of, written and read in the notation of PyTorch's pipelining.

A network is cut into stages, a batch into micro-batches. What a rank does for one stage and one micro-batch:

    2F0     stage 2, forward pass of micro-batch 0
    2B0     the whole backward pass
    2I0     its first half, the gradients of the inputs: all that the stage before waits for
    2W0     its second half, the gradients of the weights: nobody waits for it but the optimizer
    (2F4;5B1)OVERLAP_F_B    a forward and a backward pass of two micro-batches, interleaved

A schedule is one list of such steps for every rank, in the order in which the rank does them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from train.errors import UserError

F, B, I, W = KINDS = ("F", "B", "I", "W")  # noqa: E741  the letters of the literature


class ScheduleError(UserError, ValueError):
    """A schedule that cannot be made, or that cannot run."""


class Step(NamedTuple):
    """One pass of one stage over one micro-batch."""

    stage: int
    kind: str  # one of KINDS
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @property
    def parts(self) -> tuple["Step", ...]:
        """The step itself: every step of a schedule, overlapped or not, has parts."""
        return (self,)


class Overlap(NamedTuple):
    """F&B: the forward pass of one micro-batch and the whole backward pass of another, interleaved."""

    forward: Step
    backward: Step

    def __str__(self) -> str:
        return f"({self.forward};{self.backward})OVERLAP_F_B"

    @property
    def parts(self) -> tuple[Step, ...]:
        """Both passes. Neither waits for the other: what both need must be there before the first begins."""
        return (self.forward, self.backward)


AnyStep: TypeAlias = Step | Overlap
Schedule: TypeAlias = Sequence[Sequence[AnyStep]]

SINGLE = re.compile(r"(\d+)([FBIW])(\d+)")
PAIR = re.compile(r"\((\d+F\d+);(\d+B\d+)\)OVERLAP_F_B")


def parse(text: str) -> AnyStep:
    """The step that is written so; the inverse of `str`."""
    if single := SINGLE.fullmatch(text):
        return Step(int(single[1]), single[2], int(single[3]))
    if pair := PAIR.fullmatch(text):
        forward, backward = (SINGLE.fullmatch(part) for part in pair.groups())
        assert forward and backward
        return Overlap(Step(int(forward[1]), F, int(forward[3])), Step(int(backward[1]), B, int(backward[3])))
    raise ScheduleError(f"{text!r} is no step: write 2F0, 2B0, 2I0, 2W0 or (2F4;5B1)OVERLAP_F_B")


def read(text: str) -> list[list[AnyStep]]:
    """A schedule from text: a line for each rank, commas between its steps. Empty places are skipped."""
    ranks = [[parse(word) for word in map(str.strip, line.split(",")) if word] for line in text.splitlines()]
    return [rank for rank in ranks if rank]


def write(schedule: Schedule) -> str:
    """The inverse of `read`."""
    return "".join(",".join(map(str, rank)) + "\n" for rank in schedule)
