"""A preference for real text over sampled text, in the form of Bradley and Terry (1952).

    r(x) = w . mean of h over the continuation          P(x is preferred to y) = sigmoid(r(x) - r(y))
    L    = -ln sigmoid(r(real) - r(sampled))

h are the hidden states of a copy of the base, w is the row of its head for the end token, which nothing else
reads here: so the whole of it is a network like any other, saved and loaded as one. Both continuations follow
the same prefix. DeepSeek-R1, section 2.3.4, rewards general text by such a model: posttrain.r1.taste.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekModel
from posttrain.learning import Learning
from posttrain.metrics import Figure, figure
from posttrain.models import Speaker
from posttrain.rollout import rollout
from tinygrad_ds import Tensor
from tinygrad_ds.device import to_host
from train.batches import IGNORED, TrainingBatches
from train.trainer import State, Work

PREFIX, LENGTH = 32, 32  # tokens
BATCH, HELD_OUT_PAIRS = 64, 512
LEARNING = Learning(optimizer="adamw", lr=1e-3, warmup_steps=10, decay="linear", weight_decay=0.1)


class Pairs(NamedTuple):
    """Two continuations of each prefix, (n, PREFIX + LENGTH) each."""

    real: np.ndarray
    sampled: np.ndarray


def make_pairs(speaker: Speaker, batches: TrainingBatches, count: int, seed: Any) -> Pairs:
    """`count` rows of text, cut off, and what the network writes behind the same prefix.

    Continuations that end before LENGTH are left out, since their length would give them away.
    """
    model, tokenizer = speaker
    rows = batches.rows(0, count)
    whole = (rows.targets[:, : PREFIX + LENGTH] != IGNORED).all(axis=1)
    texts = rows.ids[whole, : PREFIX + LENGTH]
    samples = rollout(
        model,
        [row[:PREFIX].tolist() for row in texts],
        end_id=tokenizer.end_id,
        max_new_tokens=LENGTH,
        seed=seed,
    )
    kept = [i for i, sample in enumerate(samples) if len(sample.tokens) == LENGTH and not sample.ended]
    sampled = np.array([samples[i].tokens for i in kept]).reshape(len(kept), LENGTH)
    return Pairs(texts[kept], np.concatenate([texts[kept, :PREFIX], sampled], axis=1))


def scores(model: DeepSeekModel, ids: np.ndarray, weight: np.ndarray, end_id: int) -> Tensor:
    """r (n,) of ids (n, time); weight (n, time) is 1 / length over the continuation, 0 elsewhere."""
    h = model.trunk(ids)[0]  # (n, time, hidden)
    mean = (h * weight[..., None].astype(h.dtype)).sum(axis=1)  # (n, hidden)
    return mean @ model.head_weight[end_id]


def continuation(count: int) -> np.ndarray:
    """The weight for pairs, (count, PREFIX + LENGTH)."""
    return np.tile(np.repeat([0.0, 1.0 / LENGTH], [PREFIX, LENGTH]), (count, 1))


@dataclass
class Preference:
    """What the training loop needs: pairs in batches, and their loss."""

    pairs: Pairs
    end_id: int
    seed: int = 0

    def next_work(self, state: State) -> Work:
        """The pairs of a step; every epoch shuffles them anew."""
        per_epoch = max(1, len(self.pairs.real) // BATCH)
        epoch, place = divmod(state.step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs.real))
        own = order[place * BATCH : (place + 1) * BATCH]
        return Work([Pairs(self.pairs.real[own], self.pairs.sampled[own])], float(len(own)), 1.0)

    def loss(self, model: DeepSeekModel, part: Pairs, count: float) -> tuple[Tensor, dict[str, float]]:
        """-ln sigmoid(r(real) - r(sampled)): cross-entropy over the two. And the share that is right."""
        n = len(part.real)
        both = scores(model, np.concatenate(part), continuation(2 * n), self.end_id).reshape(2, n)
        value = tg.cross_entropy(both.transpose(1, 0), np.zeros(n, dtype=np.int64), reduction="sum") / count
        right = to_host(both.data)
        return value, {"preferred": float((right[0] > right[1]).sum()) / count}


def accuracy(model: DeepSeekModel, pairs: Pairs, end_id: int) -> Figure:
    """How often the real continuation has the higher score."""
    with tg.no_grad():
        n = len(pairs.real)
        both = to_host(scores(model, np.concatenate(pairs), continuation(2 * n), end_id).data).reshape(2, n)
    return figure(both[0] > both[1])
