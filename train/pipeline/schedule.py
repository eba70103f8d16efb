"""Schedules as data: for every rank its list of steps.

    one_f_one_b     as soon as a micro-batch's backward pass can run, it does      Narayanan et al. 2019
    zb1p            the same, weight halves deferred into the bubble (ZB-H1)       Qi et al. 2023
    dualpipe        micro-batches from both ends, passes interleaved               DeepSeek-V3, section 3.2.1
    dualpipe_v      its V-shaped half: no stage is held twice                      DeepSeek's repository
    gpipe           all forward passes, then all backward passes; for comparison   Huang et al. 2019

Bubble (idle time of the rank that idles most) and stage inputs kept alive at once, with PP stages:

    one_f_one_b     (PP-1)(F+B)                 PP
    zb1p            (PP-1)(F+B-2W)              PP
    both dualpipes  (PP/2-1)(F&B + B - 3W)      PP+1
    gpipe           (PP-1)(F+B)                 all micro-batches
"""

from collections.abc import Callable

from train.pipeline.dualpipe import numbered, order
from train.pipeline.steps import AnyStep, B, F, I, ScheduleError, Step, W


def gpipe(ranks: int, microbatches: int) -> list[list[AnyStep]]:
    """Rank r holds stage r; backward passes in the order of the forward passes."""
    at_least("gpipe", ranks, microbatches)
    every = range(microbatches)
    return [[*(Step(r, F, m) for m in every), *(Step(r, B, m) for m in every)] for r in range(ranks)]


def one_f_one_b(ranks: int, microbatches: int) -> list[list[AnyStep]]:
    """Rank r holds stage r. It is PP-1-r forward passes ahead, then does one forward, one backward."""
    at_least("one_f_one_b", ranks, microbatches)
    schedule: list[list[AnyStep]] = []
    for r in range(ranks):
        ahead = min(ranks - 1 - r, microbatches)
        steps: list[AnyStep] = [Step(r, F, m) for m in range(ahead)]
        for m in range(microbatches):
            if ahead + m < microbatches:
                steps.append(Step(r, F, ahead + m))
            steps.append(Step(r, B, m))
        schedule.append(steps)
    return schedule


def zb1p(ranks: int, microbatches: int) -> list[list[AnyStep]]:
    """1F1B with the backward pass in halves: rank r does a weight half r micro-batches after its first half.

    Rank r of 1F1B keeps PP-r inputs alive, so r more may wait: all ranks then keep PP, and the weight halves
    that are left fill the end, where 1F1B waits for gradients.
    """
    at_least("zb1p", ranks, microbatches)
    schedule: list[list[AnyStep]] = []
    for r in range(ranks):
        ahead = min(ranks - 1 - r, microbatches)
        steps: list[AnyStep] = [Step(r, F, m) for m in range(ahead)]
        for m in range(microbatches):
            if ahead + m < microbatches:
                steps.append(Step(r, F, ahead + m))
            steps.append(Step(r, I, m))
            if m >= r:
                steps.append(Step(r, W, m - r))
        steps += [Step(r, W, m) for m in range(max(microbatches - r, 0), microbatches)]
        schedule.append(steps)
    return schedule


def dualpipe(ranks: int, microbatches: int) -> list[list[AnyStep]]:
    """Ranks r and PP-1-r both hold the stages r and PP-1-r.

    The first half of the micro-batches enters at rank 0, the other half at the last rank. Both numbers are
    even, and there are at least two micro-batches for every rank.
    """
    at_least("dualpipe", ranks, microbatches)
    if ranks % 2:
        raise ScheduleError(
            f"dualpipe has {ranks} ranks, but two directions need pairs: take {ranks + 1}, or dualpipe_v"
        )
    if microbatches % 2:
        raise ScheduleError(
            f"dualpipe has {microbatches} micro-batches, but half of them enter at each end: "
            f"take {microbatches + 1}, or dualpipe_v"
        )
    enough("dualpipe", ranks, microbatches)
    p, c = ranks // 2, microbatches // 2
    schedule = []
    for r in range(ranks):
        k, first = (r, (0, c)) if r < p else (ranks - 1 - r, (c, 0))
        schedule.append(numbered(order(p, k, c), stages=(k, ranks - 1 - k), first=first))
    return schedule


def dualpipe_v(ranks: int, microbatches: int) -> list[list[AnyStep]]:
    """DualPipe folded in the middle: rank r holds the stages r and 2R-1-r, of 2R; all enter at rank 0."""
    at_least("dualpipe_v", ranks, microbatches)
    enough("dualpipe_v", ranks, microbatches)
    return [
        numbered(order(ranks, r, microbatches), stages=(r, 2 * ranks - 1 - r), first=(0, 0))
        for r in range(ranks)
    ]


def at_least(name: str, ranks: int, microbatches: int) -> None:
    """One rank and one micro-batch there must be."""
    for value, what in ((ranks, "ranks"), (microbatches, "micro-batches")):
        if value < 1:
            raise ScheduleError(f"{name} has {value} {what}: take at least 1")


def enough(name: str, ranks: int, microbatches: int) -> None:
    """Two micro-batches for every rank, so that both directions always have work."""
    if microbatches < 2 * ranks:
        raise ScheduleError(
            f"{name} has {microbatches} micro-batches for {ranks} ranks, but its order needs two for each: "
            f"take at least {2 * ranks}, or one_f_one_b"
        )


SCHEDULES: dict[str, Callable[[int, int], list[list[AnyStep]]]] = {
    make.__name__: make for make in (gpipe, one_f_one_b, zb1p, dualpipe, dualpipe_v)
}
