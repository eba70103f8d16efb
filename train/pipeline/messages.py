"""What travels between ranks: read from a schedule, never written into it.

A forward pass sends its output to the rank that has the next stage of its micro-batch, a backward pass
(whole or first half) its gradient to the rank that has the stage before. Where that is the same rank nothing
is sent.
"""

from typing import NamedTuple

from train.pipeline.steps import AnyStep, B, F, I, Schedule, ScheduleError, Step


class Message(NamedTuple):
    """An activation (kind F) or a gradient (kind B) on its way to `stage`."""

    kind: str
    stage: int  # that receives it
    microbatch: int
    source: int  # rank
    destination: int  # rank

    def __str__(self) -> str:
        what = "output" if self.kind == F else "gradient"
        return f"{what} of micro-batch {self.microbatch} from rank {self.source} to stage {self.stage}"


class Planned(NamedTuple):
    """A step with the messages that it waits for, and those that it sends when it is done."""

    step: AnyStep
    receives: tuple[Message, ...]
    sends: tuple[Message, ...]


def stage_count(schedule: Schedule) -> int:
    """Stages of the network."""
    return 1 + max(part.stage for rank in schedule for step in rank for part in step.parts)


def stages_of(schedule: Schedule) -> list[list[int]]:
    """For every rank the stages whose parameters it holds, in the order of the network."""
    return [sorted({part.stage for step in rank for part in step.parts}) for rank in schedule]


def homes(schedule: Schedule) -> dict[tuple[int, int], int]:
    """(stage, micro-batch) -> the rank that has this micro-batch at this stage: its inputs stay there."""
    found: dict[tuple[int, int], int] = {}
    for rank, steps in enumerate(schedule):
        for step in steps:
            for part in step.parts:
                if found.setdefault((part.stage, part.microbatch), rank) != rank:
                    raise ScheduleError(
                        f"{part} stands on rank {rank}, but micro-batch {part.microbatch} is on rank "
                        f"{found[part.stage, part.microbatch]} at stage {part.stage}: keep it on one rank"
                    )
    return found


def plan(schedule: Schedule) -> list[list[Planned]]:
    """Every rank's steps, each with its messages."""
    where = homes(schedule)

    def message(part: Step, sender: int, receiver: int) -> tuple[Message, ...]:
        """What this pass sends from stage `sender` to stage `receiver`."""
        source, destination = where.get((sender, part.microbatch)), where.get((receiver, part.microbatch))
        if source is None or destination is None or source == destination:
            return ()
        return (Message(F if part.kind == F else B, receiver, part.microbatch, source, destination),)

    def planned(step: AnyStep) -> Planned:
        receives: tuple[Message, ...] = ()
        sends: tuple[Message, ...] = ()
        for part in step.parts:
            s = part.stage
            if part.kind == F:
                receives += message(part, s - 1, s)
                sends += message(part, s, s + 1)
            elif part.kind in (B, I):
                receives += message(part, s + 1, s)
                sends += message(part, s, s - 1)
        return Planned(step, receives, sends)

    return [[planned(step) for step in rank] for rank in schedule]
