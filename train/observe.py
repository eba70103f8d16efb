"""What is measured along the way: held-out text, gradients by layer, samples, and the time that is left."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from layers import DeepSeekModel, generate
from train.batches import Tokens
from train.evaluate import bits_per_byte
from train.optimizer import squares
from train.tokenizer import Tokenizer
from train.trainer import Record, State


class HeldOut:
    """Each `steps` steps, and at the end: bits per byte of the held-out text, `held_out` in the record."""

    def __init__(self, model: DeepSeekModel, tokens: Tokens, *, steps: int, batch: int, time: int) -> None:
        self.model, self.tokens, self.steps = model, tokens, steps
        self.rows = {"batch": batch, "time": time}

    def due(self, state: State) -> bool:
        """Whether it is time."""
        return state.step == 1 or state.step % self.steps == 0 or state.done >= state.total

    def __call__(self, state: State, record: Record) -> None:
        """Measure if it is time."""
        if self.due(state):
            with state.phase("held-out text"):
                record["held_out"] = bits_per_byte(self.model, self.tokens, **self.rows)


class GradientNorms:
    """Each `steps` steps: the gradient's norm in each layer before clipping, `grad_norms` in the record.

    squares: what the norms are computed from, where that is not `squares_by_layer`.
    """

    def __init__(
        self,
        model: DeepSeekModel,
        *,
        clip: float,
        steps: int = 10,
        squares: Callable[[DeepSeekModel], dict[str, float]] | None = None,
    ) -> None:
        self.model, self.clip, self.steps = model, clip, steps
        self.squares = squares or squares_by_layer

    def __call__(self, state: State, record: Record) -> None:
        """Measure if it is time."""
        if state.step == 1 or state.step % self.steps == 0:
            clipped = max(1.0, record["grad_norm"] / self.clip)
            norms = self.squares(self.model)
            record["grad_norms"] = {name: clipped * math.sqrt(total) for name, total in norms.items()}


def squares_by_layer(model: DeepSeekModel) -> dict[str, float]:
    """Sum of the squares of the gradient in `embed_tokens`, `layers.0`, .., `norm`, `lm_head`, `mtp.0`, .."""
    total: dict[str, float] = {}
    for path, leaf in model.named_leaves():
        words = path.split(".")
        name = ".".join(words[:2] if words[1].isdigit() else words[:1])
        if leaf.grad is not None:
            total[name] = total.get(name, 0.0) + squares(leaf.grad)
    return total


class Samples:
    """At these shares of the run: what the model writes after the prompt, `sample` in the record."""

    def __init__(
        self,
        model: DeepSeekModel,
        tokenizer: Tokenizer,
        prompt: str,
        *,
        shares: tuple[float, ...] = (0.05, 0.35, 1.0),
        length: int = 100,
    ) -> None:
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.shares, self.length = shares, length
        self.before = 0.0  # share that was done a step ago

    def due(self, state: State) -> bool:
        """Whether a share has just been reached."""
        return any(self.before < share <= reached(state) for share in self.shares)

    def __call__(self, state: State, record: Record) -> None:
        """Write a sample if a share has just been reached."""
        if self.due(state):
            with state.phase("samples"):
                record["sample"] = write(self.model, self.tokenizer, self.prompt, self.length)
        self.before = reached(state)


def reached(state: State) -> float:
    """The share of a run that is done."""
    return min(state.done / state.total, 1.0)


def write(model: DeepSeekModel, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    """The prompt, cut to half of what the model can read, and at most `length` tokens after it."""
    limit = model.config.max_position_embeddings
    ids = tokenizer.encode(prompt)[: limit // 2] or [tokenizer.end_id]
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "stop_tokens": tokenizer.end_id, "seed": 1}
    out = generate(model, np.array([ids]), min(length, limit - len(ids)), **options)
    return tokenizer.decode(out[0])


class TimeLimit:
    """Shortens the run so that it takes `seconds`: less is left to do, and the learning rate falls sooner.

    The clock starts at the third step of a session, since the first ones may compile, and is looked at
    `steps` steps later; what earlier sessions took is in `before`. Where time suffices nothing changes, and
    the run is the same in every bit whatever the clock says.
    """

    def __init__(self, seconds: float, before: float = 0.0, steps: int = 10) -> None:
        self.seconds, self.steps = seconds - before, steps
        self.calls = 0

    def __call__(self, state: State, record: Record) -> None:
        """Look how much can be done in time, and let that be the end, or the end that was planned."""
        self.calls += 1
        if self.calls == 1:
            self.planned = state.total
        if self.calls == 3:
            self.began, self.at = state.seconds, state.done
        if self.calls > 3 + self.steps:
            taken = state.seconds - self.began
            reachable = state.done + (state.done - self.at) / taken * max(self.seconds - taken, 0.0)
            record["total"] = state.total = reachable if reachable < 0.98 * self.planned else self.planned
