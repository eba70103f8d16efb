"""What a rank keeps while it works: the inputs of its stages, from F until B or W, and the weight halves.

No timing changes it, for a rank's order is fixed; that is why a schedule alone says how much memory it needs.
"""

from collections.abc import Sequence

from train.pipeline.steps import AnyStep, B, F, I, Schedule, W


def kept(steps: Sequence[AnyStep]) -> list[int]:
    """How many stage inputs one rank keeps during each of its steps.

    An input is alive from the beginning of F to the end of B or W. In F&B both passes are alive.
    """
    alive = 0
    during = []
    for step in steps:
        kinds = [part.kind for part in step.parts]
        alive += kinds.count(F)
        during.append(alive)
        alive -= kinds.count(B) + kinds.count(W)
    return during


def most_alive(schedule: Schedule) -> list[int]:
    """For every rank, the most stage inputs alive at once."""
    return [max(kept(steps), default=0) for steps in schedule]


def most_waiting(schedule: Schedule) -> list[int]:
    """For every rank, the most weight halves that wait at once."""
    most = []
    for steps in schedule:
        waiting, highest = 0, 0
        for step in steps:
            kinds = [part.kind for part in step.parts]
            waiting += kinds.count(I) - kinds.count(W)
            highest = max(highest, waiting)
        most.append(highest)
    return most
