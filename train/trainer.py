"""The training loop, the only one: what pre-training, fine-tuning, reinforcement differ in is passed in."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from layers import DeepSeekModel
from tinygrad_ds import Tensor
from tinygrad_ds.device import device_of, to_host
from train.device_step import Pending, clip_later


class TrainingStopped(Exception):
    """The loss or the gradient is not finite. The weights are as before the step that the message names."""


class Optimizer(Protocol):
    """What the loop asks of an optimizer."""

    lr: float

    def step(self) -> None:
        """Move the parameters."""

    def zero_grad(self) -> None:
        """Forget the gradients."""


class Work(NamedTuple):
    """One step's batch: micro-batches that go through the network one after the other and add up."""

    parts: Sequence[Any]
    count: Any  # what the loss of the whole batch is divided by, for example its number of targets
    size: float  # how far the step brings the run, for example its number of tokens


@dataclass
class State:
    """How far a run has come. With the weights and the optimizer's state this is all that a resume needs."""

    total: float
    """The run ends when `done` reaches it."""
    step: int = 0
    done: float = 0.0
    seconds: float = 0.0
    """Spent in steps and what follows them, over all sessions."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by name of what they went into."""
    torn: bool = False
    """Whether the optimizer is at work: the weights are of no step, and no checkpoint may hold them."""
    metrics: int = 0
    """Bytes of the metrics file when the last step had been written."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    """For whatever draws random numbers as the run goes on."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a `with` block under `name`."""
        began = perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + perf_counter() - began


Loss = Callable[[DeepSeekModel, Any, Any], tuple[Tensor, dict[str, float]]]
Record = dict[str, Any]


def figure(value: Tensor) -> Any:
    """A number of the step: a float, or where the loss is on a GPU its 0-d array, to be read at the end."""
    return float(value) if device_of(value.data) == "cpu" else value.detach().data


def accumulate(model: DeepSeekModel, work: Work, loss: Loss, state: State) -> dict[str, float]:
    """The loss of the whole batch with its parts; the gradient is left in the leaves.

    Every micro-batch's loss is a sum divided by the count of the whole batch, so the sum over micro-batches,
    and that of their gradients, is what the batch in one piece gives, however unevenly its targets are
    spread.
    """
    numbers = {"loss": 0.0}
    for part in work.parts:
        with state.phase("forward"):
            value, named = loss(model, part, work.count)
        with state.phase("backward"):
            value.backward()
        for name, number in {"loss": figure(value), **named}.items():
            numbers[name] = numbers.get(name, 0.0) + number
    return numbers


def train(
    model: DeepSeekModel,
    optimizer: Optimizer,
    next_work: Callable[[State], Work],
    loss: Loss,
    state: State,
    *,
    learning_rate: Callable[[State], float],
    clip: float = 1.0,
    clip_gradients: Callable[[DeepSeekModel, float], float | Pending] = clip_later,
    bias_speed: Callable[[State], float] = lambda state: 0.0,
    gradients: Callable[[DeepSeekModel, Work, Loss, State], dict[str, float]] = accumulate,
    around: Callable[[], AbstractContextManager] = nullcontext,
    after: Sequence[Callable[[State, Record], None]] = (),
) -> None:
    """Step until `state.done` reaches `state.total`.

    next_work(state): the batch of a step; it depends on the state alone, so a resumed run is the same run.
    loss(model, part, count): a sum over one micro-batch divided by the count of the whole batch, and those
        parts of it that are worth a name, as numbers.
    learning_rate(state), bias_speed(state): for the step; the second is how far the routers' biases move.
    clip_gradients(model, clip): scale the gradient to that norm, if its norm is above; return what it was,
        or on a GPU what will see to it.
    gradients(model, work, loss, state): how the gradient is computed, where that is not by `accumulate`: a
        pipeline puts its own here.
    around: a context for it, such as one in which products run in FP8.
    after: called in order when a step is done, the gradients still in place, with the record of the step, to
        which they may add: showing, measuring and saving are theirs.

    Raises TrainingStopped, before anything is changed, when the loss or the gradient's norm is not finite.
    """
    started = perf_counter() - state.seconds
    while state.done < state.total:
        with state.phase("batches"):
            work = next_work(state)
        with around():
            numbers = gradients(model, work, loss, state)
        with state.phase("optimizer"):
            optimizer.lr = learning_rate(state)
            norm = clip_gradients(model, clip)
            state.torn = True
            if isinstance(norm, Pending):
                numbers, norm, loads = norm.finish(optimizer, numbers, bias_speed(state))
                refuse_not_finite(state.step + 1, optimizer.lr, numbers["loss"], norm)
            else:
                numbers = {name: float(number) for name, number in numbers.items()}
                refuse_not_finite(state.step + 1, optimizer.lr, numbers["loss"], norm)
                optimizer.step()
                loads = {name: to_host(moe.load).copy() for name, moe in model.moe_layers().items()}
                model.update_router_bias(bias_speed(state))
        state.step += 1
        state.done += work.size
        state.torn = False
        state.seconds = perf_counter() - started
        record = {
            "step": state.step,
            "done": state.done,
            "total": state.total,
            "seconds": state.seconds,
            **numbers,
            "grad_norm": norm,
            "lr": optimizer.lr,
            "loads": loads,
        }
        for each in after:
            each(state, record)
        optimizer.zero_grad()


def refuse_not_finite(step: int, lr: float, loss: float, norm: float) -> None:
    """Raise TrainingStopped where the loss or the norm is nan or infinite."""
    for name, number in {"loss": loss, "gradient's norm": norm}.items():
        if not math.isfinite(number):
            raise TrainingStopped(
                f"step {step}: the {name} is {number} at learning rate {lr:.3g}, so training stopped before "
                "that step changed anything: a lower learning rate or a smaller clip may help, and "
                "tg.using(detect_anomaly=True) names the first gradient that is not finite"
            )
