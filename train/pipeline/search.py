"""Which layers a stage should have: the split of a network over its stages that makes a schedule shortest.

Layers differ (the first few are dense, the last carries the head), so equal numbers of them are not equal
times, and what a rank does at once depends on the schedule. Where there are few enough splits all are tried;
else the search begins at the split whose longest stage is shortest, and moves one layer from any stage to any
other as long as that shortens the run.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from train.pipeline.messages import stage_count
from train.pipeline.simulator import Link, Simulator
from train.pipeline.steps import Schedule, ScheduleError
from train.pipeline.times import StageTimes, Times

ALL = 20_000  # so many splits are all tried
AT_ONCE = 2_000  # splits timed together


class Split(NamedTuple):
    """How many layers each stage has, in the order of the network, and what comes of it."""

    counts: tuple[int, ...]
    length: float
    tried: int
    exact: bool  # whether every split was tried


def best_split(
    schedule: Schedule, layers: Times, count: int, communication: Link = 0.0, try_all: int = ALL
) -> Split:
    """The shortest split of `count` layers over the stages of a schedule, at least one to each.

    layers: the times of passes by layer, F&B by the rule of `Times`.
    """
    stages = stage_count(schedule)
    if count < stages:
        raise ScheduleError(f"{count} layers are too few for {stages} stages: every stage needs one")
    if layers.FB is not None or layers.slowdown != 1.0:
        raise ScheduleError("a split is searched with times by layer: leave FB and slowdown out")
    simulator = Simulator(schedule)
    sums = running_sums(layers, count)
    exact = comb(count - 1, stages - 1) <= try_all
    if exact:
        inner = np.array(list(combinations(range(1, count), stages - 1)), dtype=int)
        cuts = with_ends(inner.reshape(-1, stages - 1), count)
        lengths = measure(simulator, sums, cuts, communication)
        best = int(lengths.argmin())
        return Split(tuple(np.diff(cuts[best]).tolist()), float(lengths[best]), len(cuts), exact)
    here = evenest(sums[0] + sums[3], stages)
    length = float(measure(simulator, sums, here[None], communication)[0])
    tried = 1
    while len(cuts := neighbours(here)):
        lengths = measure(simulator, sums, cuts, communication)
        tried += len(cuts)
        best = int(lengths.argmin())
        if lengths[best] >= length:
            break
        here, length = cuts[best], float(lengths[best])
    return Split(tuple(np.diff(here).tolist()), length, tried, exact)


def stage_sums(layers: Times, counts: Sequence[int]) -> Times:
    """The times of the stages that have so many layers each."""
    sums = running_sums(layers, sum(counts))
    F, I, W, B, exchange = np.diff(sums[:, np.cumsum([0, *counts])]).tolist()  # noqa: E741
    return Times(F=F, I=I, W=W, B=B, all_to_all=exchange)


def running_sums(layers: Times, count: int) -> np.ndarray:
    """The times F, I, W, B and all-to-all of the first 0, 1, .., `count` layers together: (5, count + 1)."""
    return np.array([np.cumsum([0.0, *values]) for values in layers.by_stage(count, "layers")[:5] if values])


def with_ends(inner: np.ndarray, count: int) -> np.ndarray:
    """(choices, stages - 1) inner borders -> (choices, stages + 1) all borders."""
    return np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, count)))


def measure(simulator: Simulator, sums: np.ndarray, cuts: np.ndarray, communication: Link) -> np.ndarray:
    """Lengths of the schedule for each row of borders."""
    found = []
    for some in np.array_split(cuts, -(-len(cuts) // AT_ONCE)):
        stages = StageTimes(*np.diff(sums[:, some]).transpose(0, 2, 1))  # each (stages, choices)
        took = [time for rank in stages.of(simulator.schedule, np.maximum) for time in rank]
        found.append(simulator.lengths(np.array(took), communication))
    return np.concatenate(found)


def evenest(sums: np.ndarray, stages: int) -> np.ndarray:
    """Borders for which the longest stage is shortest, by the usual recursion over its last border.

    best[s, l] = min over b of max(best[s-1, b], sums[l] - sums[b]) for l layers in s stages.
    """
    count = len(sums) - 1
    best = np.full((stages + 1, count + 1), np.inf)
    last = np.zeros((stages + 1, count + 1), int)
    best[0, 0] = 0
    for s in range(1, stages + 1):
        for ends in range(s, count + 1):
            longest = np.maximum(best[s - 1, :ends], sums[ends] - sums[:ends])
            last[s, ends] = longest.argmin()
            best[s, ends] = longest.min()
    cuts = [count]
    for s in range(stages, 0, -1):
        cuts.append(int(last[s, cuts[-1]]))
    return np.array(cuts[::-1])


def neighbours(cuts: np.ndarray) -> np.ndarray:
    """Every split that takes one layer from a stage and gives one to another: borders between move by one."""
    stages = len(cuts) - 1
    found = []
    for one, other in combinations(range(stages), 2):
        for by in (1, -1):
            moved = cuts.copy()
            moved[one + 1 : other + 1] += by
            if (np.diff(moved) > 0).all():
                found.append(moved)
    return np.array(found).reshape(-1, stages + 1)
