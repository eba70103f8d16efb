"""`python -m train schedule`: a schedule in text, what checker and simulator say of it, and its chart."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from train.cache import write_aside
from train.pipeline.checker import check
from train.pipeline.drawing import chart, summary
from train.pipeline.messages import stages_of
from train.pipeline.promise import promise
from train.pipeline.schedule import SCHEDULES
from train.pipeline.simulator import simulate
from train.pipeline.steps import Schedule, ScheduleError, read, write
from train.pipeline.times import Times
from train.pipeline.trace import chrome_trace

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Show:
    """Check, simulate and draw a pipeline schedule. A time is one number, or one for each stage in order."""

    schedule: tyro.conf.Positional[str]
    """gpipe, one_f_one_b, zb1p, dualpipe, dualpipe_v, or a file: a line a rank, commas between steps."""
    ranks: int = 4
    microbatches: int = 8
    F: Annotated[Numbers, tyro.conf.arg(name="F")] = (1.0,)
    """Time of a forward pass."""
    I: Annotated[Numbers, tyro.conf.arg(name="I")] = (1.0,)  # noqa: E741
    """Time of the first half of a backward pass, the gradients of the inputs."""
    W: Annotated[Numbers, tyro.conf.arg(name="W")] = (1.0,)
    """Time of its second half, the gradients of the weights."""
    B: Annotated[Numbers | None, tyro.conf.arg(name="B")] = None
    """Time of a whole backward pass, I + W where it is not given."""
    FB: Annotated[Numbers | None, tyro.conf.arg(name="FB")] = None
    """Time of F&B, by the stage that goes forward; else the longer of F + B and both all-to-alls."""
    all_to_all: Numbers = (0.0,)
    """Time of a pass's dispatch and combine between experts: added to what runs alone, hidden in F&B."""
    slowdown: Numbers = (1.0,)
    """How many times slower each rank is than it should be."""
    communication: float = 0.0
    """Time of a message from one rank to another."""
    svg: Path | None = None
    """Draw the timeline into this file."""
    trace: Path | None = None
    """Write it for chrome://tracing or ui.perfetto.dev, with a millisecond for each unit of time."""

    def times(self) -> Times:
        """A single number is for all stages or ranks."""

        def plain(numbers: Numbers) -> float | Numbers:
            return numbers[0] if len(numbers) == 1 else numbers

        return Times(
            F=plain(self.F),
            I=plain(self.I),
            W=plain(self.W),
            B=self.B and plain(self.B),
            FB=self.FB and plain(self.FB),
            all_to_all=plain(self.all_to_all),
            slowdown=plain(self.slowdown),
        )


def show(asked: Show) -> None:
    """Print the steps and a table of the ranks; write the files that are asked for once all is known."""
    steps = make(asked)
    report = check(steps)
    timeline = simulate(steps, asked.times(), asked.communication)
    print(write(steps))
    table = Table(title=f"{asked.schedule}: {summary(timeline)}", title_justify="left")
    for name in ("rank", "stages", "busy", "idle", "inputs alive", "weight halves waiting"):
        table.add_column(name, justify="right")
    for rank, stages in enumerate(stages_of(steps)):
        held = ", ".join(map(str, stages))
        numbers = (timeline.busy[rank], timeline.idle[rank], report.alive[rank], report.waiting[rank])
        table.add_row(str(rank), held, *(f"{number:.6g}" for number in numbers))
    Console().print(table)
    ahead = ("no receive", "one receive")[report.ahead] if report.ahead < 2 else f"{report.ahead} receives"
    print(
        f"{report.messages} messages, in order on every channel; no timing can make it deadlock "
        f"(if sends wait for their receives: with {ahead} asked for ahead)"
    )
    if beside := beside_promise(asked, timeline.bubble):
        print(beside)
    if asked.svg:
        write_aside(asked.svg, chart({asked.schedule: timeline}).encode())
    if asked.trace:
        write_aside(asked.trace, json.dumps(chrome_trace(timeline, unit=1e-3)).encode())


def beside_promise(asked: Show, bubble: float) -> str:
    """The bubble by the published formula, which knows stages and ranks that are all alike."""
    alike = all(len(numbers or (0,)) == 1 for numbers in (asked.F, asked.I, asked.W, asked.B, asked.FB))
    alike = alike and asked.slowdown == (1.0,)
    free = asked.communication == 0 and asked.all_to_all == (0.0,)
    if not (asked.schedule in SCHEDULES and alike and free and asked.microbatches >= 2 * asked.ranks):
        return ""
    f, w = asked.F[0], asked.W[0]
    b = asked.B[0] if asked.B else asked.I[0] + w
    fb = asked.FB[0] if asked.FB else f + b
    promised = promise(asked.schedule, asked.ranks, asked.microbatches, f, b, w, fb).bubble
    if abs(promised - bubble) < 1e-9 * max(promised, 1.0):
        return f"the bubble is that of the published formula, {promised:.6g}"
    more = "less" if bubble < promised else "more"
    return f"the published formula says {promised:.6g}: {abs(bubble - promised):.6g} {more}"


def make(asked: Show) -> Schedule:
    """The schedule of that name, or in that file."""
    if asked.schedule in SCHEDULES:
        return SCHEDULES[asked.schedule](asked.ranks, asked.microbatches)
    try:
        return read(Path(asked.schedule).read_text())
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(SCHEDULES)
        raise ScheduleError(
            f"{asked.schedule!r} is neither a schedule ({names}) nor a file of one"
        ) from error
