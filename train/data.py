"""Text for training: documents without duplicates, and a part of them held out."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from train import docstrings
from train.cache import cached
from train.errors import UserError
from train.files import read_files

FEWEST_BYTES = 20_000
HELD_OUT_SHARE = 0.08


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to judge by, which share none."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    sources: tuple[str, ...]  # programs with versions, or the user's paths

    @cached_property
    def sha256(self) -> str:
        """Of all documents and of the split: two corpora of one sha256 train the same model."""
        parts = (json.dumps(list(map(digest, part))) for part in (self.train, self.held_out))
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @cached_property
    def train_bytes(self) -> int:
        return count_bytes(self.train)

    @cached_property
    def held_out_bytes(self) -> int:
        return count_bytes(self.held_out)


def load_corpus(paths: Sequence[str | Path] = (), say: Callable[[str], None] = lambda line: None) -> Corpus:
    """The corpus of the user's `paths`, or without any the default text, collected once and then cached.

    `say` is told in short sentences what goes on. Raises UserError where a path cannot be used or the text
    holds fewer than 20,000 bytes.
    """
    if paths:
        return split_corpus(read_files(paths, say), tuple(map(str, paths)))
    sources = docstrings.docstring_sources()
    key = {
        "sources": sources,
        "collector": hashlib.sha256(Path(docstrings.__file__).read_bytes()).hexdigest(),
    }
    text = cached("docstrings", key, lambda: json.dumps(docstrings.collect_docstrings(say)).encode())
    return split_corpus(json.loads(text), tuple(sources))


def split_corpus(documents: Iterable[str], sources: tuple[str, ...] = ()) -> Corpus:
    """Drop blank documents and exact duplicates (the first stays), then hold out 8 % of the bytes.

    Held out are the documents of the lowest sha256, as many as it takes. So the choice depends on neither the
    order of the documents nor on duplicates, and when documents are added the others keep their side, but for
    those near the end of the 8 %. Both parts keep the order of `documents`.
    """
    unique = {digest(text): text for text in documents if text.strip()}
    total = count_bytes(unique.values())
    if total < FEWEST_BYTES or len(unique) < 2:
        raise UserError(
            f"the text holds {total:,} bytes in {len(unique)} documents once duplicates are dropped, "
            f"but training needs at least {FEWEST_BYTES:,} bytes in 2: give more text"
        )
    held_out, held_bytes = set(), 0
    for name in sorted(unique)[:-1]:
        if held_bytes >= HELD_OUT_SHARE * total:
            break
        held_out.add(name)
        held_bytes += len(unique[name].encode())
    return Corpus(
        train=tuple(text for name, text in unique.items() if name not in held_out),
        held_out=tuple(text for name, text in unique.items() if name in held_out),
        sources=sources,
    )


def digest(text: str) -> str:
    """The sha256 by which documents are told apart and put in order."""
    return hashlib.sha256(text.encode()).hexdigest()


def count_bytes(texts: Iterable[str]) -> int:
    """How many bytes the texts hold in UTF-8."""
    return sum(len(text.encode()) for text in texts)
