import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.batches import IGNORED, Tokens, TrainingBatches, held_out_batches, tokenize
from train.tokenizer import Tokenizer

END = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=8)
TIME = st.integers(1, 7)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some text to learn from, some more text"], 270)


def tokens_of(documents: list[list[int]]) -> Tokens:
    """Documents of given ids, as if every id stood for two bytes."""
    ids = np.array([i for document in documents for i in [*document, END]], dtype=np.int32)
    lengths = np.array([len(document) + 1 for document in documents])
    return Tokens(ids, lengths, 2 * (lengths - 1), END)


def unique_tokens(count: int) -> Tokens:
    """`count` documents of 5 tokens in which no id occurs twice but the end's."""
    return tokens_of((1 + np.arange(5 * count).reshape(count, 5)).tolist())


@given(DOCUMENTS, TIME, st.integers(0, 99), st.integers(0, 3))
def test_every_token_is_a_target_exactly_once_an_epoch(documents, time, seed, epoch):
    tokens = tokens_of(documents)
    batches = TrainingBatches(tokens, time=time, seed=seed)
    targets = batches.rows(epoch * batches.rows_per_epoch, batches.rows_per_epoch).targets
    assert Counter(targets[targets != IGNORED].tolist()) == Counter(tokens.ids.tolist())
    assert (targets == IGNORED).sum() < time


@given(DOCUMENTS, TIME, st.integers(0, 99))
def test_targets_are_the_ids_that_come_next(documents, time, seed):
    batches = TrainingBatches(tokens_of(documents), time=time, seed=seed)
    ids, targets = batches.rows(0, batches.rows_per_epoch)
    assert ids.shape == targets.shape == (batches.rows_per_epoch, time)
    assert ids.dtype == targets.dtype == np.int64
    counted = targets[:, :-1] != IGNORED
    assert (ids[:, 1:] == np.where(counted, targets[:, :-1], END)).all()
    # Every token is predicted from the one before it in its document, the first one from an end token.
    follows = Counter(zip(ids[targets != IGNORED], targets[targets != IGNORED]))
    pairs = [pair for document in documents for pair in zip([END, *document], [*document, END])]
    assert follows == Counter(pairs)


@given(DOCUMENTS, TIME, st.integers(0, 99), st.integers(0, 200), st.lists(st.integers(1, 5), max_size=5))
def test_rows_depend_on_their_number_alone(documents, time, seed, start, counts):
    """So a run that was resumed, or whose batch is divided otherwise, sees the same rows bit for bit."""
    tokens = tokens_of(documents)
    whole = TrainingBatches(tokens, time=time, seed=seed).rows(start, sum(counts) + 1)
    resumed = TrainingBatches(tokens, time=time, seed=seed)
    parts, at = [resumed.rows(start + sum(counts), 1)], start
    for count in counts:
        parts.insert(-1, resumed.rows(at, count))
        at += count
    assert (np.concatenate([part.ids for part in parts]) == whole.ids).all()
    assert (np.concatenate([part.targets for part in parts]) == whole.targets).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    tokens = unique_tokens(50)
    batches = TrainingBatches(tokens, time=8, seed=1)
    n = batches.rows_per_epoch
    first, second, other = (
        batches.rows(0, n),
        batches.rows(n, n),
        TrainingBatches(tokens, time=8, seed=2).rows(0, n),
    )
    assert (first.ids != second.ids).any() and (first.ids != other.ids).any()


def test_a_document_stays_whole_and_documents_are_shuffled():
    batches = TrainingBatches(unique_tokens(50), time=300, seed=3)
    row = batches.rows(0, 1).targets[0]
    documents = row.reshape(50, 6)
    assert (np.diff(documents[:, :5]) == 1).all() and (documents[:, 5] == END).all()
    assert not (np.diff(documents[:, 0]) > 0).all()


def test_rows_of_a_long_document_are_not_neighbours():
    batches = TrainingBatches(tokens_of([list(range(1, 400))]), time=4, seed=0)
    first = batches.rows(0, batches.rows_per_epoch).ids[:, 0]
    assert not (np.diff(first) > 0).all()


@given(DOCUMENTS, TIME, st.integers(1, 4))
def test_held_out_text_is_read_once_in_order(documents, time, batch):
    tokens = tokens_of(documents)
    found = list(held_out_batches(tokens, batch=batch, time=time))
    assert all(len(part.ids) == batch for part in found[:-1]) and 1 <= len(found[-1].ids) <= batch
    targets = np.concatenate([part.targets.ravel() for part in found])
    assert targets[targets != IGNORED].tolist() == tokens.ids.tolist()
    ids = np.concatenate([part.ids.ravel() for part in found])
    assert ids[: len(tokens)].tolist() == [END, *tokens.ids[:-1].tolist()]


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_stream_takes_documents_in_any_order(documents, random):
    order = list(range(len(documents)))
    random.shuffle(order)
    wanted = [END] + [i for place in order for i in [*documents[place], END]]
    assert tokens_of(documents).stream(np.array(order)).tolist() == wanted
    assert (
        tokens_of(documents).stream().tolist() == tokens_of(documents).stream(np.arange(len(order))).tolist()
    )


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_tokens_know_the_text_and_its_bytes(texts):
    tokens = tokenize(texts, tokenizer())
    stops = np.cumsum(tokens.lengths)
    parts = np.split(tokens.ids, stops[:-1])
    assert [tokenizer().decode(part[:-1]) for part in parts] == texts
    assert all(part[-1] == tokenizer().end_id for part in parts) and stops[-1] == len(tokens)
    assert tokens.sizes.tolist() == [len(text.encode()) for text in texts]
    again = tokenize(texts, tokenizer())
    assert (again.ids == tokens.ids).all() and (again.lengths == tokens.lengths).all()


def test_bits_per_byte_counts_the_ends_of_documents_but_not_as_bytes():
    """Three documents of 4 bytes, all 257 tokens equally likely: 5 predictions each."""
    tokens = tokenize(["abcd", "efgh", "ijkl"], Tokenizer.train(["aa"], 257))
    assert len(tokens) == 15 and tokens.n_bytes == 12
    assert tokens.bits_per_byte(15 * math.log(257)) == pytest.approx(15 * math.log2(257) / 12, rel=1e-15)


@given(DOCUMENTS, st.integers(1, 60))
def test_a_thin_copy_is_made_of_whole_documents(documents, most):
    tokens = tokens_of(documents)
    thin = tokens.thin(most)
    step = math.ceil(len(tokens) / most)
    kept = tokens_of(documents[::step])
    assert thin.ids.tolist() == kept.ids.tolist() and thin.n_bytes == kept.n_bytes
    assert thin.stream().tolist() == kept.stream().tolist()
