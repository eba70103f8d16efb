"""Several sequences in one row, none of which sees another: nothing is spent on padding.

Attention takes for every token the column at which its own sequence begins (`first`), and positions count
from there; so a packed sequence is computed exactly as one alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from posttrain.rollout import Sample
from train.batches import IGNORED
from train.errors import UserError


class Example(NamedTuple):
    """A prompt and what should follow it."""

    prompt: np.ndarray  # (n,) ids
    completion: np.ndarray  # (m,) ids, the end token included
    weights: np.ndarray | None = None  # (m,) of the completion's tokens in the loss; None: 1 each


class Packed(NamedTuple):
    """Rows of sequences. `targets[r, c]` is the token after `ids[r, c]`, -100 where that is no completion."""

    ids: np.ndarray  # (rows, time)
    targets: np.ndarray  # (rows, time)
    first: np.ndarray  # (rows, time)  the column at which the token's sequence begins
    weights: np.ndarray | None  # (rows, time)
    starts: np.ndarray  # (sequences, 2)  row and column of each sequence's first token

    @property
    def total(self) -> float:
        """What the sum of the losses is divided by for a mean: targets that count, or their weights."""
        counted = self.targets != IGNORED
        return float(counted.sum() if self.weights is None else self.weights[counted].sum())


def pack(examples: Sequence[Example], time: int) -> Packed:
    """Put sequences into as few rows of at most `time` columns as going through them by length does.

    The last token of a sequence is a target only, so a sequence of n + m tokens takes n + m - 1 columns.
    UserError for one that does not fit.
    """
    lengths = np.array([len(e.prompt) + len(e.completion) - 1 for e in examples])
    for number in np.flatnonzero(lengths > time)[:1]:
        raise UserError(
            f"sequence {number} has {lengths[number] + 1} tokens but the network reads {time} at once: leave "
            "it out or shorten it"
        )
    room: list[int] = []  # columns in use, row by row
    starts = np.zeros((len(examples), 2), dtype=int)
    for number in np.argsort(-lengths, kind="stable"):  # the longest first, each into the first row with room
        length = lengths[number]
        row = next((r for r, used in enumerate(room) if used + length <= time), len(room))
        if row == len(room):
            room.append(0)
        starts[number] = row, room[row]
        room[row] += length
    shape = len(room), max(room, default=0)
    ids, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    first = np.broadcast_to(np.arange(shape[1]), shape).copy()  # what is left sees itself alone
    weighted = any(example.weights is not None for example in examples)
    weights = np.zeros(shape) if weighted else None
    for (row, start), length, example in zip(starts, lengths, examples):
        own, answer = slice(start, start + length), slice(start + len(example.prompt) - 1, start + length)
        ids[row, own] = np.concatenate([example.prompt, example.completion])[:-1]
        targets[row, answer] = example.completion
        first[row, own] = start
        if weights is not None:
            weights[row, answer] = 1.0 if example.weights is None else example.weights
    return Packed(ids, targets, first, weights, starts)


def packed_samples(samples: Sequence[Sample], time: int) -> Packed:
    """Sampled sequences as rows."""
    return pack([Example(sample.prompt, sample.tokens) for sample in samples], time)


def packed_experts(samples: Sequence[Sample], packed: Packed) -> dict[str, np.ndarray]:
    """The experts that were chosen while sampling, laid out as the packed rows: (rows, time, K) by layer."""
    found = {}
    for name, seen in samples[0].experts.items():
        k = seen.shape[-1]
        rows = np.broadcast_to(np.arange(k), (*packed.ids.shape, k)).copy()  # for what is left, any will do
        for (row, start), sample in zip(packed.starts, samples):
            own = sample.experts[name]
            rows[row, start : start + len(own)] = own
        found[name] = rows
    return found
