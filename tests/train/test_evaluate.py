import math

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.train.tiny import CONFIG, tiny_model
from train.batches import Tokens
from train.evaluate import bits_per_byte


def some_tokens(documents=5, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 30, documents)
    ids = rng.integers(1, CONFIG.vocab_size, lengths.sum())
    ids[np.cumsum(lengths) - 1] = 0
    return Tokens(ids.astype(np.int32), lengths, 3 * lengths - 1, end_id=0)


def test_network_that_knows_nothing_needs_log2_of_the_vocabulary_for_every_token():
    model, tokens = tiny_model(), some_tokens()
    for leaf in model.parameters():
        leaf.data[...] = 0
    expected = len(tokens) * math.log2(CONFIG.vocab_size) / tokens.n_bytes
    assert bits_per_byte(model, tokens, batch=3, time=8) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_every_token_counts_once_given_those_before_it_in_its_row(batch):
    """Against probabilities written out token by token, one prefix at a time."""
    model, tokens, time = tiny_model(), some_tokens(), 8
    stream, nats = tokens.stream(), 0.0
    with tg.no_grad():
        for place in range(len(tokens)):
            start = place - place % time
            logits = model(stream[None, start : place + 1]).data[0, -1]
            nats -= logits[stream[place + 1]] - np.log(np.exp(logits).sum())
    expected = nats / math.log(2) / tokens.n_bytes
    assert bits_per_byte(model, tokens, batch=batch, time=time) == pytest.approx(expected, rel=1e-10)


def test_judging_leaves_no_trace():
    model = tiny_model()
    bits_per_byte(model, some_tokens(), batch=2, time=8)
    assert all(leaf.grad is None for leaf in model.parameters())
    assert not any(moe.load.any() for moe in model.moe_layers().values())
