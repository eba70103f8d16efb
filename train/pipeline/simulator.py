"""How long a schedule takes: an event-driven run of it, with a time for every step and every message.

A step begins when its rank is free and all that it waits for has arrived. What it sends leaves when it is
done and travels for the time of its link, while the rank goes on. No clock ticks in between: a rank that
waits is looked at again when what it waits for is done, so every step is looked at once.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from train.pipeline.graph import Graph
from train.pipeline.steps import Schedule, ScheduleError
from train.pipeline.timeline import Timeline
from train.pipeline.times import Times

Link: TypeAlias = float | Sequence[Sequence[float]]
"""The time of a message: one for all, or a row for each sender with a time for each receiver."""
Durations: TypeAlias = Sequence[Sequence[float]]
"""For every rank the time of each of its steps, such as were measured."""
UNIT = Times()  # F = I = W = 1


class Simulator:
    """A schedule made ready to be timed again and again: what waits for what is found once."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.graph = Graph(schedule)

    def run(self, times: Times | Durations = UNIT, communication: Link = 0.0) -> Timeline:
        """When every step begins and ends."""
        durations = durations_of(self.schedule, times)
        delay = links(communication, len(self.schedule))
        ranks, needs = self.graph.ranks, self.graph.needs
        took = [time for rank in durations for time in rank]
        starts, ends = took.copy(), took.copy()
        free = [0.0] * len(durations)
        for step in self.graph.order:
            rank = ranks[step]
            start = free[rank]
            for other in needs[step]:
                arrives = ends[other] + delay[ranks[other]][rank]
                if arrives > start:
                    start = arrives
            starts[step] = start
            free[rank] = ends[step] = start + took[step]
        cuts = np.cumsum([0, *map(len, durations)]).tolist()
        pieces = list(zip(cuts, cuts[1:]))
        return Timeline(self.schedule, [starts[a:b] for a, b in pieces], [ends[a:b] for a, b in pieces])

    def lengths(self, took: np.ndarray, communication: Link = 0.0) -> np.ndarray:
        """Lengths for many choices of times at once: took (steps, choices) -> (choices,).

        The steps are numbered rank by rank. The same recursion as in `run`, each number a row of numbers.
        """
        delay = links(communication, len(self.schedule))
        ranks, needs = self.graph.ranks, self.graph.needs
        ends = np.empty_like(took)
        free = np.zeros((len(self.schedule), took.shape[1]))
        for step in self.graph.order:
            rank = ranks[step]
            now = free[rank]
            for other in needs[step]:
                np.maximum(now, ends[other] + delay[ranks[other]][rank], out=now)
            np.add(now, took[step], out=now)
            ends[step] = now
        return free.max(axis=0)


def simulate(schedule: Schedule, times: Times | Durations = UNIT, communication: Link = 0.0) -> Timeline:
    """The timeline of a schedule whose passes take `times` and whose messages take `communication`."""
    return Simulator(schedule).run(times, communication)


def durations_of(schedule: Schedule, times: Times | Durations) -> Durations:
    """The time of every step of every rank."""
    if isinstance(times, Times):
        return times.of(schedule)
    if [*map(len, times)] != [*map(len, schedule)]:
        raise ScheduleError(
            f"times are given for {[*map(len, times)]} steps of the ranks that have {[*map(len, schedule)]}: "
            "give one for each step, or Times"
        )
    return times


def links(communication: Link, ranks: int) -> Sequence[Sequence[float]]:
    """The time of a message from each rank to each other."""
    table = (
        [[float(communication)] * ranks] * ranks if isinstance(communication, (int, float)) else communication
    )
    if [*map(len, table)] != [ranks] * ranks:
        raise ScheduleError(
            f"communication has rows of {[*map(len, table)]} for {ranks} ranks: "
            "give a time for each sender and receiver, or a single one"
        )
    if not all(0 <= time < float("inf") for row in table for time in row):
        raise ScheduleError("communication has a time that is negative or not finite: give times from 0")
    return table
