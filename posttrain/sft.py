"""Supervised fine-tuning: cross-entropy on completions alone, with general text beside them if wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from layers import DeepSeekModel
from layers.loss import mean_loss
from posttrain.packing import Example, Packed, pack
from posttrain.scoring import log_probs
from tinygrad_ds import Tensor
from tinygrad_ds.device import place
from train.batches import IGNORED, TrainingBatches
from train.errors import UserError
from train.tokenizer import Tokenizer
from train.trainer import State, Work

CHAINS, TEXT = "chains", "text"


class Part(NamedTuple):
    """A micro-batch of one kind."""

    kind: str
    packed: Packed


def example(tokenizer: Tokenizer, prompt: str, completion: str) -> Example:
    """A prompt and its completion as ids, the end token behind it. Words that are tokens become these."""
    ids = [*tokenizer.encode(completion, special=True), tokenizer.end_id]
    return Example(np.array(tokenizer.encode(prompt, special=True)), np.array(ids))


@dataclass
class FineTuning:
    """What the training loop needs of fine-tuning: batches by the step's number alone, and their loss.

        L = mean over completion tokens of -ln p  +  text_weight (the same mean over tokens of text)

    Every epoch shuffles the examples anew, from (seed, epoch). A step takes `batch` of them and, where there
    is text, `text_rows` rows of it; examples go through the network `micro_batch` at a time, packed.
    """

    examples: Sequence[Example]
    time: int  # columns of a packed row
    batch: int = 64
    micro_batch: int = 64
    text: TrainingBatches | None = None
    text_rows: int = 0
    text_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.examples:
            raise UserError("there is no example to learn from: give at least one prompt with a completion")
        if self.batch < 1 or self.micro_batch < 1:
            raise UserError(
                f"batch is {self.batch} and micro_batch {self.micro_batch} but both are at least 1"
            )
        self._epoch = -1

    def at(self, step: int) -> list[Example]:
        """The examples of a step, going on into the next epoch where one ends."""
        numbers = range(step * self.batch, (step + 1) * self.batch)
        return [self.examples[self.number(i)] for i in numbers]

    def number(self, drawn: int) -> int:
        """Which of the examples comes after `drawn` others."""
        epoch, place = divmod(drawn, len(self.examples))
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.examples))
            self._epoch = epoch
        return int(self._order[place])

    def next_work(self, state: State) -> Work:
        """The batch of a step."""
        examples = self.at(state.step)
        cut = range(0, len(examples), self.micro_batch)
        parts = [Part(CHAINS, pack(examples[i : i + self.micro_batch], self.time)) for i in cut]
        if self.text is not None and self.text_rows:
            rows = self.text.rows(state.step * self.text_rows, self.text_rows)
            nothing = np.zeros_like(rows.ids)
            parts.append(Part(TEXT, Packed(rows.ids, rows.targets, nothing, None, np.zeros((0, 2), int))))
        count = {
            kind: sum(part.packed.total for part in parts if part.kind == kind) for kind in (CHAINS, TEXT)
        }
        return Work(parts, count, 1.0)

    def loss(
        self, model: DeepSeekModel, part: Part, count: dict[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch, and its mean by kind."""
        value = completion_loss(model, part.packed, count[part.kind])
        named = {part.kind: float(value)}
        return (value * self.text_weight if part.kind == TEXT else value), named


def completion_loss(model: DeepSeekModel, packed: Packed, count: float) -> Tensor:
    """-ln p of all targets that count, each times its weight, summed and divided by `count`."""
    if packed.weights is None:
        first = packed.first if packed.first.any() else None
        return mean_loss(model, model.trunk(packed.ids, first=first)[0], packed.targets, count)
    logp = log_probs(model, packed)
    weights = packed.weights.reshape(-1)[np.flatnonzero(packed.targets != IGNORED)]
    return -(logp * place(weights, dtype=logp.dtype)).sum() / float(count or 1)
