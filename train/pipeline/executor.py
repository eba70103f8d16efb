"""A schedule, carried out: one rank of a pipeline goes through its steps for the micro-batches of a batch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds import Tensor
from tinygrad_ds.deferred import DeferredWeightGradients
from tinygrad_ds.device import Array, here, namespace
from train.parallel.communicator import Communicator, Pending
from train.pipeline.interleave import Interleaver
from train.pipeline.messages import Message, Planned, plan
from train.pipeline.stage import Stage
from train.pipeline.steps import B, F, I, Overlap, Schedule, Step
from train.trainer import Loss

AHEAD = 2  # for so many steps before one begins its messages may arrive


class Kept(NamedTuple):
    """What a stage keeps of a micro-batch between its passes."""

    entered: Tensor | None  # None at the first stage
    left: Tensor | None  # None at the last stage
    value: Tensor  # its share of the loss


class Executor:
    """A rank of a pipeline with its stages, by number; `schedule` makes the steps of all ranks of `line`."""

    def __init__(
        self,
        stages: Mapping[int, Stage],
        schedule: Callable[[int, int], Schedule],
        line: Communicator,
        interleaver: Interleaver,
    ) -> None:
        self.stages, self.schedule, self.line, self.interleaver = stages, schedule, line, interleaver
        self.planned: dict[int, list[Planned]] = {}  # by the number of micro-batches
        self.most_alive = 0
        """The most stage inputs that were kept at once, in the last batch."""

    def run(self, parts: list[Any], count: Any, loss: Loss) -> dict[str, float]:
        """Leave the gradients of these micro-batches in the leaves; return this rank's shares of the loss."""
        if len(parts) not in self.planned:
            self.planned[len(parts)] = plan(self.schedule(self.line.size, len(parts)))[self.line.rank]
        planned = self.planned[len(parts)]
        batch = Passes(self, parts, count, loss)
        for number, each in enumerate(planned):
            for soon in planned[number : number + AHEAD + 1]:
                batch.expect(soon)
            batch.arrive(each)
            with self.line.trace.step(str(each.step)):
                batch.do(each.step)
            batch.post(each)
        batch.finish()
        self.most_alive = batch.most_alive
        return batch.numbers


class Passes:
    """The passes of one batch on one rank, and what they leave for each other."""

    def __init__(self, executor: Executor, parts: list[Any], count: Any, loss: Loss) -> None:
        self.line, self.stages, self.interleaver = executor.line, executor.stages, executor.interleaver
        self.parts, self.count, self.loss = parts, count, loss
        self.kept: dict[tuple[int, int], Kept] = {}  # by stage and micro-batch
        self.later: dict[tuple[int, int], DeferredWeightGradients] = {}
        self.ready: dict[tuple[str, int, int], Array] = {}  # F or B, stage that needs it, micro-batch
        self.expected: dict[Message, Pending] = {}
        self.posted: list[Pending] = []
        self.numbers: dict[str, float] = {}
        self.most_alive = 0

    def expect(self, planned: Planned) -> None:
        """Ask for the messages of a step, unless that was done before."""
        for message in planned.receives:
            if message not in self.expected:
                stage, ids = self.stages[message.stage], self.parts[message.microbatch][0]
                shape = (*np.shape(ids), stage.config.hidden_size)
                what = f"the {message}, for step {planned.step}"
                into = here().empty(shape, dtype=stage.dtype)
                self.expected[message] = self.line.receive(into, message.source, tag(message), what)

    def arrive(self, planned: Planned) -> None:
        """Wait for the messages of a step."""
        for message in planned.receives:
            pending = self.expected[message]
            self.line.wait(pending)
            self.ready[message.kind, message.stage, message.microbatch] = pending.buffers[0]

    def post(self, planned: Planned) -> None:
        """Send what others wait for. What this rank itself needs next stays in `ready`."""
        for message in planned.sends:
            array = self.ready.pop((message.kind, message.stage, message.microbatch))
            what = f"rank {message.destination} to take the {message}"
            self.posted.append(self.line.send(array, message.destination, tag(message), what))
        self.line.progress()

    def do(self, step: Step | Overlap) -> None:
        """One step of the schedule."""
        if isinstance(step, Overlap):
            self.interleaver.other = backward = self.backward(step.backward)
            self.forward(step.forward)
            self.interleaver.other = None
            exhaust(backward)
        elif step.kind == F:
            self.forward(step)
        elif step.kind in (B, I):
            exhaust(self.backward(step))
        else:
            self.later.pop(key(step)).run()
            del self.kept[key(step)]

    def forward(self, step: Step) -> None:
        """F: the stage's output, or the loss, of a micro-batch."""
        stage, label = self.stages[step.stage], str(step)
        entered = None
        if not stage.first:
            entered = Tensor(self.ready.pop((F, *key(step))), requires_grad=True)
        self.most_alive = max(self.most_alive, len(self.kept) + 1)
        stage.enter(entered)
        self.interleaver.label = label
        self.interleaver.begin("embedding" if stage.first else "")
        value, named = self.loss(stage, self.parts[step.microbatch], self.count)
        self.interleaver.stop("")
        left = stage.leave()
        self.kept[key(step)] = Kept(entered, left, value)
        if left is not None:
            self.ready[F, step.stage + 1, step.microbatch] = left.data
        for name, number in {"loss": float(value), **named}.items():
            self.numbers[name] = self.numbers.get(name, 0.0) + number

    def backward(self, step: Step) -> Iterator[None]:
        """B or I, component by component: the gradients of the weights, now or later, and of the input."""
        entered, left, value = self.kept[key(step)]
        seeds = []
        if value.requires_grad:
            seeds.append((value, namespace(value.data).ones_like(value.data)))
        if left is not None:
            seeds.append((left, self.ready.pop((B, *key(step)))))
        later = DeferredWeightGradients() if step.kind == I else None
        yield from self.interleaver.backward(str(step), seeds, later)
        if entered is not None:
            self.ready[B, step.stage - 1, step.microbatch] = entered.grad
        if later is None:
            del self.kept[key(step)]
        else:
            self.later[key(step)] = later

    def finish(self) -> None:
        """Wait until all that was sent has gone."""
        for pending in self.posted:
            self.line.wait(pending)


def exhaust(passes: Iterator[None]) -> None:
    """Go on to the end."""
    for _ in passes:
        pass


def key(step: Step) -> tuple[int, int]:
    """Stage and micro-batch."""
    return step.stage, step.microbatch


def tag(message: Message) -> int:
    """What tells messages between two ranks apart: on each such channel they are taken in order."""
    return 2 * message.stage + (message.kind == B)
