"""What a person sees of a run: a line that renews itself, or plain lines where there is no terminal."""

import sys
from time import perf_counter
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tinygrad_ds.kernels import progress as compiling
from train.trainer import Record, State

EVERY = 10.0  # seconds between two plain lines about steps
SOON = 3.0  # between others, and until the first


class Display:
    """After a step: show speed, loss, held-out loss, expert load and time left. Use it in a `with` block.

    `say` prints a line that stays. Kernels that are compiled on the way are named.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.held_out: float | None = None
        self.next_line = 0.0  # seconds of the clock
        self.window: list[tuple[float, float]] = []  # (seconds, done) of the latest steps

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar = Progress(BarColumn(20), TextColumn("{task.description}"), console=self.console)
            self.task = self.bar.add_task("the first step", total=None)
            self.bar.start()
        compiling.listener = self.compiles
        return self

    def __exit__(self, *error: object) -> None:
        compiling.listener = None
        if self.bar is not None:
            self.bar.stop()

    def compiles(self, what: str) -> None:
        """Show that a kernel is being compiled."""
        if self.bar is not None:
            self.bar.update(self.task, description=f"{what} (once, then kept on disk)")
        else:
            self.line(f"{what} (once, then kept on disk)", SOON)

    def __call__(self, state: State, record: Record) -> None:
        """Show a step."""
        self.held_out = record.get("held_out", self.held_out)
        self.window = [*self.window[-19:], (perf_counter(), state.done)]
        learnt, pace = self.describe(record)
        if self.bar is not None:
            text = f"{learnt}\n{pace}"
            self.bar.update(self.task, description=text, completed=state.done, total=state.total)
        else:
            pause = EVERY if len(self.window) > 2 else SOON
            self.line(f"{learnt}  {pace}", pause, now=state.done >= state.total)

    def describe(self, record: Record) -> tuple[str, str]:
        """What a step says, in two lines or two halves of one."""
        return describe(record, self.held_out, self.speed())

    def line(self, text: str, pause: float, now: bool = False) -> None:
        """Print a plain line, unless the pause after the last one is not over and it need not be `now`."""
        clock = perf_counter()
        if now or clock >= self.next_line:
            self.say(text)
            self.next_line = clock + pause

    def speed(self) -> float:
        """Units of `state.done` per second, over the latest steps; 0 if there is one step only."""
        (then, before), (now, done) = self.window[0], self.window[-1]
        return (done - before) / (now - then) if now > then else 0.0


def describe(record: Record, held_out: float | None, speed: float) -> tuple[str, str]:
    """What a step says about learning, and about experts and pace: two lines, or two halves of one."""
    loss = record.get("main", record["loss"])
    learnt = [f"{record['seconds']:4.0f} s", f"step {record['step']}", f"loss {loss:.3f}"]
    if held_out is not None:
        learnt.append(f"held-out {held_out:.3f} bits/byte")
    pace = []
    if record["loads"]:
        most = max(max(load) * len(load) / max(sum(load), 1) for load in record["loads"].values())
        pace.append(f"busiest expert {most:.1f}x")
    if record.get("infinities"):
        pace.append(f"{record['infinities']:.0f} infinities made finite by FP8")
    if speed:
        left = (record["total"] - record["done"]) / speed
        pace += [f"{speed:,.0f} tokens/s", f"{minutes(left)} left"]
    return "  ".join(learnt), "  ".join(pace)


def minutes(seconds: float) -> str:
    """As a clock shows them: 2:05."""
    whole, rest = divmod(round(max(seconds, 0)), 60)
    return f"{whole}:{rest:02d}"
