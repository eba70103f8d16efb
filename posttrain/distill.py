"""Distillation by logits: a student learns the teacher's distribution at every token of given chains.

The teacher reads each chain once; its likeliest tokens with their log-probabilities go to disk. What is left
of its probability is spread evenly over the other tokens, so with all tokens kept it is the teacher itself.
(Distillation by chains alone is fine-tuning on them: posttrain.sft.)
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekModel
from posttrain.packing import Example, Packed, pack
from posttrain.scoring import predictions
from posttrain.sft import CHAINS, TEXT, FineTuning, Part
from tinygrad_ds import Tensor
from tinygrad_ds.device import place, to_host
from train.batches import IGNORED
from train.cache import cached
from train.errors import UserError
from train.trainer import State, Work


class Likeliest(NamedTuple):
    """The teacher's distributions over the completion tokens of all examples, one after the other."""

    ids: np.ndarray  # (tokens, k) int32
    logp: np.ndarray  # (tokens, k) float32, at temperature 1
    offsets: np.ndarray  # (examples + 1,)
    vocab: int

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and logp of one example's completion."""
        own = slice(self.offsets[number], self.offsets[number + 1])
        return self.ids[own], self.logp[own]

    def logits(self, numbers: Sequence[int]) -> np.ndarray:
        """(tokens, vocab) log-probabilities of these examples' tokens, the rest spread evenly."""
        ids, logp = (np.concatenate(parts) for parts in zip(*map(self.of, numbers)))
        left = np.maximum(1 - np.exp(logp.astype(np.float64)).sum(axis=1, keepdims=True), 1e-9)
        others = max(self.vocab - ids.shape[1], 1)
        full = np.broadcast_to(np.log(left / others), (len(ids), self.vocab)).astype(np.float32)
        np.put_along_axis(full, ids.astype(np.int64), logp, axis=1)
        return full


def likeliest(teacher: DeepSeekModel, examples: Sequence[Example], k: int, batch: int = 64) -> Likeliest:
    """What the teacher thinks of every completion token: its k likeliest. Cached on disk, by its weights."""
    vocab = teacher.config.vocab_size
    if k < 1:
        raise UserError(f"k is {k} but the teacher must name at least 1 token: 64 are plenty")
    k = min(k, vocab)
    lengths = [len(each.completion) for each in examples]

    def make() -> bytes:
        file = io.BytesIO()
        ids, logp = [], []
        for start in range(0, len(examples), batch):
            some = examples[start : start + batch]
            found, order = distributions(teacher, some, k)
            ids.append(order.astype(np.int32))
            logp.append(found.astype(np.float32))
        np.savez(file, ids=np.concatenate(ids), logp=np.concatenate(logp))
        return file.getvalue()

    key = {"teacher": digest_of(teacher), "examples": digest_of_examples(examples), "k": k}
    with np.load(io.BytesIO(cached("teacher", key, make)), allow_pickle=False) as stored:
        return Likeliest(stored["ids"], stored["logp"], np.cumsum([0, *lengths]), vocab)


def distributions(
    teacher: DeepSeekModel, examples: Sequence[Example], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k highest log-probabilities and their ids for all completion tokens, example by example."""
    packed = pack(examples, max(len(e.prompt) + len(e.completion) - 1 for e in examples))
    with tg.no_grad():
        logp = to_host(tg.log_softmax(predictions(teacher, packed)[0]).data)  # (tokens, vocab), by rows
    logp = logp[by_example(packed, examples)]
    order = np.argsort(-logp, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(logp, order, axis=1), order


def by_example(packed: Packed, examples: Sequence[Example]) -> np.ndarray:
    """(tokens,) where the completion tokens of the examples, one after the other, stand among the rows'."""
    flat = np.cumsum(packed.targets != IGNORED) - 1
    places = []
    for (row, start), each in zip(packed.starts, examples):
        begin = flat[row * packed.ids.shape[1] + start + len(each.prompt) - 1]
        places.append(np.arange(begin, begin + len(each.completion)))
    return np.concatenate(places)


def digest_of(model: DeepSeekModel) -> str:
    """The sha256 of a network's weights."""
    found = hashlib.sha256()
    for part in model.published():
        found.update(part.name.encode() + np.ascontiguousarray(to_host(part.data)).tobytes())
    return found.hexdigest()


def digest_of_examples(examples: Sequence[Example]) -> str:
    """The sha256 of prompts and completions."""
    found = hashlib.sha256()
    for each in examples:
        for ids in (each.prompt, each.completion):
            found.update(len(ids).to_bytes(8, "little") + np.asarray(ids, np.int64).tobytes())
    return found.hexdigest()


class Lesson(NamedTuple):
    """A micro-batch of chains with what the teacher thinks of their tokens."""

    kind: str
    packed: Packed
    teacher: np.ndarray  # (tokens, vocab), row by row as the packed targets


@dataclass
class Distillation(FineTuning):
    """FineTuning whose loss on chains is the divergence from the teacher; see tg.jensen_shannon.

    beta 0: forward KL, 1: reverse, between: Jensen-Shannon. Made complete by `taught_by`.
    """

    beta: float = 0.0
    temperature: float = 1.0

    def taught_by(self, teacher: Likeliest) -> Self:
        """The same, with what the teacher thinks of the examples."""
        if len(teacher.offsets) != len(self.examples) + 1:
            raise ValueError(
                f"the teacher read {len(teacher.offsets) - 1} examples, not {len(self.examples)}"
            )
        self.teacher = teacher
        return self

    def next_work(self, state: State) -> Work:
        """The batch of a step, with the teacher's distributions."""
        numbers = [self.number(i) for i in range(state.step * self.batch, (state.step + 1) * self.batch)]
        work = super().next_work(state)
        parts = []
        for place_of, part in enumerate(work.parts):
            if part.kind == TEXT:
                parts.append(part)
                continue
            own = numbers[place_of * self.micro_batch : (place_of + 1) * self.micro_batch]
            examples = [self.examples[i] for i in own]
            logits = np.empty((int(part.packed.total), self.teacher.vocab), dtype=np.float32)
            logits[by_example(part.packed, examples)] = self.teacher.logits(own)
            parts.append(Lesson(CHAINS, part.packed, logits))
        return Work(parts, work.count, work.size)

    def loss(
        self, model: DeepSeekModel, part: Part | Lesson, count: dict[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """The divergence on chains, cross-entropy on text."""
        if not isinstance(part, Lesson):
            return super().loss(model, part, count)
        logits, targets = predictions(model, part.packed)
        value = tg.jensen_shannon(
            logits,
            place(part.teacher, dtype=logits.dtype),
            place(targets),
            beta=self.beta,
            temperature=self.temperature,
            reduction="sum",
        ) / float(count[CHAINS])
        return value, {CHAINS: float(value)}
