"""Timelines in the format of Chrome's trace viewer (chrome://tracing, ui.perfetto.dev).

A row for each rank, an event for each step, and an arrow from each step that sends to the one that receives.
"""

from typing import Any

from train.pipeline.messages import Message, plan
from train.pipeline.timeline import Timeline

MICROSECONDS = 1e6


def chrome_trace(timeline: Timeline, unit: float = 1.0) -> dict[str, Any]:
    """The timeline as a dictionary, to be written as JSON. unit: seconds in one unit of its time."""
    scale = unit * MICROSECONDS
    events: list[dict[str, Any]] = []
    for rank in range(len(timeline.schedule)):
        events.append(
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}}
        )
    numbers: dict[Message, int] = {}
    for rank, steps in enumerate(plan(timeline.schedule)):
        for planned, start, end in zip(steps, timeline.starts[rank], timeline.ends[rank]):
            here = {"pid": 0, "tid": rank}
            kind = "".join(part.kind for part in planned.step.parts)
            parts = {
                part.kind: f"stage {part.stage}, micro-batch {part.microbatch}" for part in planned.step.parts
            }
            events.append(
                {
                    "name": str(planned.step),
                    "cat": kind,
                    "ph": "X",
                    "ts": start * scale,
                    "dur": (end - start) * scale,
                }
                | here
                | {"args": parts}
            )
            for message in planned.sends:
                flow = {
                    "name": str(message),
                    "cat": "message",
                    "id": numbers.setdefault(message, len(numbers)),
                }
                # an arrow belongs to the step that its beginning lies in, so it begins just before the end
                events.append(flow | here | {"ph": "s", "ts": (end - (end - start) / 1000) * scale})
            for message in planned.receives:
                flow = {
                    "name": str(message),
                    "cat": "message",
                    "id": numbers.setdefault(message, len(numbers)),
                }
                events.append(flow | here | {"ph": "f", "bp": "e", "ts": start * scale})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
