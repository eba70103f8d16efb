"""What simpler means reach on the held-out text, in bits per byte: counting, and file compressors.

All are charged for the same thing as the model: the text and the end of each document, over the bytes of the
text alone. Each figure is cached.
"""

import json
import lzma
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from train.batches import Tokens
from train.cache import cached
from train.data import Corpus
from train.tokenizer import Tokenizer

BYTE_SYMBOLS = 257  # the bytes and the end of a document
PRIMED_BYTES = 32 << 20  # with the held-out text still within xz's dictionary of 64 MiB
MASSES = 2.0 ** np.arange(-6, 13)  # tried for the mass of a bigram's prior


def measure_baselines(
    corpus: Corpus,
    train_tokens: Tokens,
    held_out_tokens: Tokens,
    tokenizer: Tokenizer,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Bits per byte of `corpus.held_out` by name of the method, the hardest peer last.

    "uniform", "token unigram" and "token bigram" are over the tokens of `tokenizer`; uniform is where an
    untrained model starts. `say` is told which one is at work; the last takes about 1.5 s per MB of training
    text the first time, the others together about 3 s.
    """
    train, held_out = corpus.train, corpus.held_out
    vocab_size = tokenizer.vocab_size
    methods: dict[str, Callable[[], float]] = {
        "uniform": lambda: uniform(held_out_tokens, vocab_size),
        "token unigram": lambda: unigram(train_tokens, held_out_tokens, vocab_size),
        "token bigram": lambda: bigram(train_tokens, held_out_tokens, vocab_size),
        "byte unigram": lambda: unigram(byte_tokens(train), byte_tokens(held_out), BYTE_SYMBOLS),
        "byte bigram": lambda: bigram(byte_tokens(train), byte_tokens(held_out), BYTE_SYMBOLS),
        "zlib -9": lambda: zlib_alone(held_out),
        "xz -9e": lambda: xz_alone(held_out),
        "xz -9e primed": lambda: xz_primed(train, held_out),
    }
    figures = {}
    for name, method in methods.items():
        key = {"method": name, "corpus": corpus.sha256}
        if "token" in name or name == "uniform":
            key["tokenizer"] = tokenizer.sha256

        def make(name: str = name, method: Callable[[], float] = method) -> bytes:
            say(f"measuring {name}")
            return json.dumps(method()).encode()

        figures[name] = json.loads(cached("baseline", key, make))
    return figures


def uniform(held_out: Tokens, vocab_size: int) -> float:
    """Every token equally likely: log2(vocab_size) bits each."""
    return held_out.bits_per_byte(len(held_out) * math.log(vocab_size))


def unigram(train: Tokens, held_out: Tokens, vocab_size: int) -> float:
    """Tokens by their frequency in training, one added to each count."""
    return held_out.bits_per_byte(-float(np.log(frequencies(train, vocab_size)[held_out.ids]).sum()))


def bigram(train: Tokens, held_out: Tokens, vocab_size: int) -> float:
    """Tokens by their frequency in training after the one before.

        p(b | a) = (c(a, b) + m q(b)) / (c(a) + m),    q(b) the unigram's frequency

    This is add-k smoothing where k = m q(b) is shared out by how common b is, rather than evenly. The mass m
    is the one under which the training pairs, each left out of the counts in its turn, are likeliest; the
    held-out text has no part in it.
    """
    q = frequencies(train, vocab_size)
    stream = train.stream().astype(np.int64)
    pairs, counts = np.unique(stream[:-1] * vocab_size + stream[1:], return_counts=True)
    context = np.bincount(stream[:-1], minlength=vocab_size)  # c(a)
    a, b = np.divmod(pairs, vocab_size)

    def left_out(m: float) -> float:
        return float((counts * np.log((counts - 1 + m * q[b]) / (context[a] - 1 + m))).sum())

    m = max(MASSES, key=left_out)
    stream = held_out.stream().astype(np.int64)
    wanted = stream[:-1] * vocab_size + stream[1:]
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, counts[place], 0)  # c(a, b)
    p = (seen + m * q[stream[1:]]) / (context[stream[:-1]] + m)
    return held_out.bits_per_byte(-float(np.log(p).sum()))


def frequencies(tokens: Tokens, vocab_size: int) -> np.ndarray:
    """(vocab_size,) share of each token, one added to each count so that none is 0."""
    counts = np.bincount(tokens.ids, minlength=vocab_size) + 1.0
    return counts / counts.sum()


def byte_tokens(documents: Sequence[str]) -> Tokens:
    """Documents as tokens that are their bytes, closed by symbol 256."""
    rows = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in documents]
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([part for row in rows for part in (row, [256])]).astype(np.int32)
    return Tokens(ids, sizes + 1, sizes, end_id=256)


def zlib_alone(held_out: Sequence[str]) -> float:
    """Compressed by `zlib` at level 9, with nothing known beforehand."""
    return rate(len(zlib.compress(joined(held_out), 9)), held_out)


def xz_alone(held_out: Sequence[str]) -> float:
    """The size of a file that `xz -9e` makes of the held-out text."""
    return rate(len(xz(joined(held_out))), held_out)


def xz_primed(train: Sequence[str], held_out: Sequence[str]) -> float:
    """What the held-out text adds to the file when it follows the training text, of which the last 32 MiB."""
    before = joined(train)[-PRIMED_BYTES:]
    return rate(len(xz(before + joined(held_out))) - len(xz(before)), held_out)


def xz(data: bytes) -> bytes:
    """As `xz -9e` compresses."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def joined(documents: Sequence[str]) -> bytes:
    """One file of all documents, a zero byte after each: a compressor too has to say where they end."""
    return b"".join(text.encode() + b"\0" for text in documents)


def rate(compressed_bytes: int, documents: Sequence[str]) -> float:
    """Bits per byte of the text of `documents`."""
    return 8 * compressed_bytes / sum(len(text.encode()) for text in documents)
