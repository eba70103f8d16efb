"""A batch as it was carried out, beside what the simulator makes of its steps' processor time.

A step's processor time is that of its thread, with one BLAS thread a rank: it does not grow when ranks take
turns on a core, while the clock does. So the simulated timeline is what ranks with a core each would do, and
the measured one what happened here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.cache import write_aside
from train.parallel.trace import Flight, Span, Trace
from train.pipeline.drawing import chart
from train.pipeline.simulator import simulate
from train.pipeline.steps import Schedule
from train.pipeline.timeline import Timeline
from train.pipeline.trace import MICROSECONDS, chrome_trace

UNIT = 1e-3  # seconds in a unit of the timelines, which charts show
CHART, TRACE = "pipeline.svg", "pipeline.json"


class Recorded(NamedTuple):
    """What the traces of all ranks of one pipeline hold of a batch."""

    schedule: Schedule
    steps: list[list[Span]]  # for every rank
    components: list[list[Span]]
    flights: list[list[Flight]]

    @property
    def measured(self) -> Timeline:
        """By the clock; a step that waits for rows of experts waits inside."""
        began = min(span.began for rank in self.steps for span in rank)
        starts = [[(span.began - began) / UNIT for span in rank] for rank in self.steps]
        ends = [[(span.ended - began) / UNIT for span in rank] for rank in self.steps]
        return Timeline(self.schedule, starts, ends)

    @property
    def simulated(self) -> Timeline:
        """By the processor time of every step, messages taking none."""
        return simulate(self.schedule, [[span.cpu / UNIT for span in rank] for rank in self.steps])


def recorded(schedule: Schedule, traces: Sequence[Trace]) -> Recorded:
    """The traces, from the ranks of one pipeline in their order, of a batch that followed this schedule."""
    return Recorded(
        schedule,
        [trace.steps for trace in traces],
        [trace.components for trace in traces],
        [trace.flights for trace in traces],
    )


def captions(batch: Recorded, cores: int) -> dict[str, Timeline]:
    """The two timelines under what a chart says of them."""
    ranks = len(batch.schedule)
    here = f"measured: {ranks} ranks on {cores} cores"
    if ranks > cores:
        here += ", which take turns, so that a step lasts longer than it works"
    return {
        "simulated: every step as long as its processor time, a core for every rank (ms)": batch.simulated,
        f"{here} (ms)": batch.measured,
    }


def write_charts(folder: Path, batch: Recorded, cores: int) -> str:
    """pipeline.svg, both timelines on one axis, and pipeline.json for chrome://tracing; what they show."""
    write_aside(folder / CHART, chart(captions(batch, cores)).encode())
    write_aside(folder / TRACE, json.dumps(trace_events(batch)).encode())
    simulated, measured = batch.simulated, batch.measured
    return (
        f"{folder / CHART}: a batch took {measured.length:.0f} ms; with a core for every rank and messages "
        f"that take no time it would take {simulated.length:.0f} ms, of which the idlest rank waits "
        f"{simulated.bubble:.0f}"
    )


def trace_events(batch: Recorded) -> dict[str, Any]:
    """The measured timeline with two more rows for every rank: components, and what was on its way.

    A message or an exchange is drawn from when it was posted to when it was first seen complete; `meanwhile`
    are the components that ran in between.
    """
    traced = chrome_trace(batch.measured, unit=UNIT)
    events = traced["traceEvents"]
    began = min(span.began for rank in batch.steps for span in rank)
    for rank, (components, flights) in enumerate(zip(batch.components, batch.flights)):
        row = len(batch.schedule) + rank
        name = {"name": f"rank {rank}, components"}
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": name})
        for span in components:
            place = {"pid": 0, "tid": row, "cat": "component", "ph": "X"}
            times = {
                "ts": (span.began - began) * MICROSECONDS,
                "dur": (span.ended - span.began) * MICROSECONDS,
            }
            events.append({"name": span.name} | place | times)
        for number, flight in enumerate(flights):
            same = {"name": flight.what, "cat": "on its way", "id": f"{rank}.{number}", "pid": 0, "tid": row}
            told = {"bytes": flight.nbytes, "meanwhile": meanwhile(flight, components)}
            events.append(same | {"ph": "b", "ts": (flight.posted - began) * MICROSECONDS, "args": told})
            events.append(same | {"ph": "e", "ts": (flight.seen - began) * MICROSECONDS})
    return traced


def meanwhile(flight: Flight, components: Sequence[Span]) -> list[str]:
    """The components that ran, at least in part, while something was on its way."""
    return [span.name for span in components if span.ended > flight.posted and span.began < flight.seen]
