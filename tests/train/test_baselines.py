import math
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import baselines
from train.baselines import MASSES, bigram, byte_tokens, joined, measure_baselines, rate, uniform, unigram
from train.batches import tokenize
from train.data import split_corpus
from train.tokenizer import Tokenizer

PROSE = [f"Page {i}: " + " ".join(f"line {j} of {i * j % 17}" for j in range(60)) for i in range(60)]
TEXTS = st.lists(st.text(alphabet="abc é", max_size=20), min_size=1, max_size=5).filter(
    lambda texts: any(texts)
)


def symbols(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs of a symbol and the one before, 256 being the end of a document."""
    stream = [256] + [symbol for text in texts for symbol in [*text.encode(), 256]]
    return list(zip(stream[:-1], stream[1:]))


@given(TEXTS, TEXTS)
def test_unigram_is_what_counting_by_hand_gives(train, held_out):
    counts, total = Counter(b for _, b in symbols(train)), len(symbols(train))
    bits = -sum(math.log2((counts[b] + 1) / (total + 257)) for _, b in symbols(held_out))
    wanted = bits / len("".join(held_out).encode())
    assert unigram(byte_tokens(train), byte_tokens(held_out), 257) == pytest.approx(wanted, rel=1e-12)


@given(TEXTS, TEXTS)
def test_bigram_is_what_counting_by_hand_gives(train, held_out):
    pairs = symbols(train)
    pair_counts, contexts = Counter(pairs), Counter(a for a, _ in pairs)
    singles = Counter(b for _, b in pairs)

    def p(a, b, m, left_out=0):
        q = (singles[b] + 1) / (len(pairs) + 257)
        return (pair_counts[a, b] - left_out + m * q) / (contexts[a] - left_out + m)

    assert sum(p(ord("a"), b, 2.0) for b in range(257)) == pytest.approx(1)
    likelihoods = [math.fsum(math.log(p(a, b, m, left_out=1)) for a, b in pairs) for m in MASSES]
    best = [m for m, value in zip(MASSES, likelihoods) if value >= max(likelihoods) - 1e-9]
    found = bigram(byte_tokens(train), byte_tokens(held_out), 257)
    n_bytes = len("".join(held_out).encode())
    wanted = [-sum(math.log2(p(a, b, m)) for a, b in symbols(held_out)) / n_bytes for m in best]
    assert any(found == pytest.approx(value, rel=1e-12) for value in wanted)


@given(TEXTS)
def test_uniform_charges_the_end_of_a_document_too(texts):
    n_bytes = len("".join(texts).encode())
    wanted = (n_bytes + len(texts)) * math.log2(257) / n_bytes
    assert uniform(byte_tokens(texts), 257) == pytest.approx(wanted, rel=1e-12)


def test_bigram_learns_what_follows_from_the_symbol_before():
    """In abcabc... nothing is left to say; a unigram still needs log2 3."""
    text = byte_tokens(["abc" * 2000])
    assert bigram(text, text, 257) < 0.01
    assert unigram(text, text, 257) == pytest.approx(math.log2(3), abs=0.1)


def test_what_never_occurred_costs_bits_but_not_infinitely_many():
    assert 8 < bigram(byte_tokens(["a" * 1000]), byte_tokens(["xyz"]), 257) < 30


@pytest.mark.skipif(shutil.which("xz") is None, reason="compares with the program xz")
def test_xz_is_as_long_as_the_file_that_xz_makes():
    done = subprocess.run(["xz", "-9e", "-T1"], input=joined(PROSE), capture_output=True, check=True)
    assert baselines.xz_alone(PROSE) == 8 * len(done.stdout) / sum(map(len, PROSE))


def test_compressors_are_charged_for_the_ends_of_documents():
    rng = np.random.default_rng(0)
    noise = ["".join(map(chr, rng.integers(1, 128, 500))) for _ in range(20)]  # 7 bits each, incompressible
    assert joined(noise).count(b"\0") == 20
    for compressed in (baselines.zlib_alone(noise), baselines.xz_alone(noise)):
        assert math.log2(127) < compressed < 8.2
    assert rate(100, ["é" * 100]) == 4.0


def test_a_primed_compressor_knows_the_training_text():
    rng = np.random.default_rng(1)
    train = ["".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(20)]
    assert baselines.xz_primed(train, train[3:6]) < 0.1 < 4 < baselines.xz_alone(train[3:6])


def test_training_text_beyond_the_limit_is_the_last_part(monkeypatch):
    rng = np.random.default_rng(2)
    train = ["".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(10)]
    monkeypatch.setattr(baselines, "PRIMED_BYTES", 4100)
    assert baselines.xz_primed(train, train[-1:]) < 0.2 < 4 < baselines.xz_primed(train, train[:1])


def test_all_are_measured_once_and_in_the_expected_order():
    corpus = split_corpus(PROSE)
    said: list[str] = []
    for vocab_size, measured in ((300, 8), (300, 8), (320, 11)):
        tokenizer = Tokenizer.train(corpus.train, vocab_size)
        parts = [tokenize(part, tokenizer) for part in (corpus.train, corpus.held_out)]
        figures = measure_baselines(corpus, *parts, tokenizer, said.append)
        assert len(said) == measured
        assert list(figures)[-1] == "xz -9e primed" and len(figures) == 8
        assert figures["uniform"] > figures["token unigram"] > figures["token bigram"] > 0
        assert 8 > figures["byte unigram"] > figures["byte bigram"] > figures["token bigram"]
        assert figures["zlib -9"] > figures["xz -9e primed"]
    assert figures["uniform"] == pytest.approx(uniform(parts[1], tokenizer.vocab_size))
