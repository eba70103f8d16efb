"""Tokens to batches: one long stream of documents, shuffled anew each epoch and cut into rows."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.cache import cached
from train.data import digest
from train.tokenizer import Tokenizer

IGNORED = -100  # a target that counts nowhere


class Batch(NamedTuple):
    """Rows of the stream: `targets[b, t]` is the token after `ids[b, t]`."""

    ids: np.ndarray  # (batch, time) int64
    targets: np.ndarray  # (batch, time) int64, -100 where the row is longer than the text


@dataclass(frozen=True)
class Tokens:
    """Documents as ids, each closed by the end token, with the number of bytes that they stand for."""

    ids: np.ndarray  # (tokens,) int32
    lengths: np.ndarray  # (documents,) int64, tokens of each document, its end token included
    sizes: np.ndarray  # (documents,) int64, bytes of each document
    end_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_bytes(self) -> int:
        """Bytes of the text, without any mark for the ends of documents."""
        return int(self.sizes.sum())

    def bits_per_byte(self, nats: float) -> float:
        """`nats`, the sum of -ln p over all these tokens, as bits per byte of the text.

        The end tokens are predicted too and their cost is in `nats`, while the bytes are those of the text
        alone: a model with another vocabulary, or a compressor that marks the ends, is comparable.
        """
        return nats / math.log(2) / self.n_bytes

    def stream(self, order: np.ndarray | None = None) -> np.ndarray:
        """(tokens + 1,) ids of all documents, in the given order, after one end token.

        With that first token every token of every document is predicted from something, exactly once.
        """
        if order is None:
            return np.concatenate([[self.end_id], self.ids]).astype(np.int32)
        stops = np.cumsum(self.lengths)
        first = (stops - self.lengths)[order]  # (documents,) where each document begins in ids
        offset = np.repeat(
            first - (np.cumsum(self.lengths[order]) - self.lengths[order]), self.lengths[order]
        )
        return np.concatenate([[self.end_id], self.ids[offset + np.arange(len(self))]]).astype(np.int32)

    def thin(self, most: int) -> "Tokens":
        """About `most` tokens, namely every n-th document: a quick look, exact for what it reads."""
        step = max(1, -(-len(self) // most))
        stops = np.cumsum(self.lengths)
        kept = range(0, len(self.lengths), step)
        ids = np.concatenate([self.ids[stops[i] - self.lengths[i] : stops[i]] for i in kept])
        return Tokens(ids, self.lengths[::step], self.sizes[::step], self.end_id)


def tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    """All documents as ids; cached on disk, since 5 MB take 4 to 6 s of one core."""

    def make() -> bytes:
        rows = tokenizer.encode_batch(documents)
        file = io.BytesIO()
        np.savez(
            file,
            ids=np.array([i for row in rows for i in (*row, tokenizer.end_id)], dtype=np.int32),
            lengths=np.array([len(row) + 1 for row in rows], dtype=np.int64),
            sizes=np.array([len(text.encode()) for text in documents], dtype=np.int64),
        )
        return file.getvalue()

    key = {"tokenizer": tokenizer.sha256, "documents": [digest(text) for text in documents]}
    with np.load(io.BytesIO(cached("tokens", key, make)), allow_pickle=False) as stored:
        return Tokens(stored["ids"], stored["lengths"], stored["sizes"], tokenizer.end_id)


class TrainingBatches:
    """Endless rows of `time` tokens in which every token of `tokens` is a target exactly once an epoch.

    Each epoch shuffles the documents, cuts the stream into rows and shuffles those, all from (seed, epoch).
    A row is known by its number alone, counted from the start of training: nothing has to be stored for an
    exact resume but how many rows have been seen, and any way to divide a batch gives the same rows.
    """

    def __init__(self, tokens: Tokens, *, time: int, seed: int):
        self.tokens = tokens
        self.time = time
        self.seed = seed
        self.rows_per_epoch = -(-len(tokens) // time)
        self._epoch = -1

    def rows(self, start: int, count: int) -> Batch:
        """Rows start .. start + count - 1, where an epoch ends going on with the next."""
        return join([self._row(number) for number in range(start, start + count)], self.tokens.end_id)

    def _row(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self.rows_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._stream = self.tokens.stream(rng.permutation(len(self.tokens.lengths)))  # (tokens + 1,)
            self._order = rng.permutation(self.rows_per_epoch)  # (rows,)
            self._epoch = epoch
        return cut_row(self._stream, self._order[place], self.time)


def held_out_batches(tokens: Tokens, *, batch: int, time: int) -> Iterator[Batch]:
    """All of `tokens` in order, every token a target exactly once; the last batch may have fewer rows."""
    stream, rows = tokens.stream(), -(-len(tokens) // time)
    for start in range(0, rows, batch):
        numbers = range(start, min(start + batch, rows))
        yield join([cut_row(stream, number, time) for number in numbers], tokens.end_id)


def cut_row(stream: np.ndarray, number: int, time: int) -> np.ndarray:
    """(time + 1,) ids: row `number` of the stream and the token after it, -100 behind the end."""
    piece = stream[number * time : (number + 1) * time + 1]
    return np.pad(piece, (0, time + 1 - len(piece)), constant_values=IGNORED)


def join(rows: list[np.ndarray], end_id: int) -> Batch:
    """Rows of time + 1 ids as a batch: all but the last id, and all but the first."""
    both = np.stack(rows).astype(np.int64)  # (batch, time + 1)
    ids = both[:, :-1]
    return Batch(np.where(ids == IGNORED, end_id, ids), np.ascontiguousarray(both[:, 1:]))
