"""Sampling completions in batches, with what learning from them needs: log-probabilities, and the experts.

A prompt goes through the network once for all its samples; sequences that have ended leave the batch. The
random number of a token is found from seed, number of the sequence and position, so neither the batch nor
its order changes what a sequence is offered. (In float64 its tokens do not change either; in float32 a
product's rounding depends on the batch, and now and then decides between two tokens.)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekModel
from posttrain.completion import Completion
from tinygrad_ds.device import place, to_host
from tinygrad_ds.ops.drawing import draw_tokens
from train.errors import UserError
from train.tokenizer import Tokenizer

LEAVE = 0.75  # share of the batch that must still go on; below, those that have ended leave


class Sample(NamedTuple):
    """One completion. Its tokens end with the end token, unless it was cut off."""

    prompt: np.ndarray  # (n,) ids
    tokens: np.ndarray  # (m,) ids
    logp: np.ndarray  # (m,) of each under softmax(logits / temperature), from which it was drawn
    entropy: np.ndarray  # (m,) of that distribution
    ended: bool
    experts: dict[str, np.ndarray]  # by name of the layer: (n + m - 1, K), the experts of every token read

    def completion(self, tokenizer: Tokenizer) -> Completion:
        """What it says."""
        said = self.tokens[:-1] if self.ended else self.tokens
        return Completion(tokenizer.decode(said.tolist(), special=True), self.ended, len(self.tokens))


def uniforms(seed: Any, sequences: range, count: int) -> np.ndarray:
    """Numbers in [0, 1) for the first `count` tokens of sequences: (sequences, count).

    The generator is one that counts: a number is found from seed, sequence and position, whatever else is
    asked for.
    """
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    streams = (np.random.Philox(key=key, counter=[0, sequence, 0, 0]) for sequence in sequences)
    return np.stack([np.random.Generator(stream).random(count) for stream in streams])


def rollout(
    model: DeepSeekModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_new_tokens: int,
    samples: int = 1,
    temperature: float = 1.0,
    seed: Any = 0,
    first_sequence: int = 0,
    experts: bool = False,
) -> list[Sample]:
    """`samples` completions of every prompt, those of a prompt behind each other.

    end_id ends a sequence. temperature 0 takes the likeliest token, and `logp` is then that of temperature 1.
    seed: whole numbers. first_sequence: the number of the first sequence; the others count on. experts:
    whether the choices of every router are kept. UserError for a prompt that leaves no room in the context.
    """
    check_prompts(model, prompts, max_new_tokens)
    unique = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in unique])
    time, batch = int(lengths.max()), len(unique) * samples
    u = uniforms(seed, range(first_sequence, first_sequence + batch), max_new_tokens)  # (batch, new)
    padded = np.stack([np.pad(prompt, (time - len(prompt), 0)) for prompt in unique])
    watch = Watch(model, batch, time + max_new_tokens) if experts else None

    tokens = np.full((batch, max_new_tokens), end_id)
    logp, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
    made, ended = np.zeros(batch, dtype=int), np.zeros(batch, dtype=bool)
    rows = np.arange(batch)  # the sequences in the batch
    first = np.repeat(time - lengths, samples)  # the column at which each begins
    cache = model.new_cache(len(unique))
    with tg.no_grad():
        h = model.hidden(padded, cache, first[::samples])[:, -1:]
        logits = model.head(h).data[:, 0]  # (prompts, vocab)
        if watch:
            watch.look(rows, slice(0, time), samples)
        if samples > 1:
            copies = np.repeat(np.arange(len(unique)), samples)
            cache.select(copies)
            logits = logits[place(copies)]
        for step in range(max_new_tokens):
            drawn = draw_tokens(logits, place(u[rows, step]), temperature=temperature)
            chosen, *numbers = (to_host(part) for part in drawn)
            going = ~ended[rows]  # those that had not ended before
            here = rows[going]
            tokens[here, step], logp[here, step], entropy[here, step] = (
                part[going] for part in (chosen, *numbers)
            )
            made[here] += 1
            ended[here] = tokens[here, step] == end_id
            going = ~ended[rows]
            if step + 1 == max_new_tokens or not going.any():
                break
            if going.mean() < LEAVE:
                kept = np.flatnonzero(going)
                cache.select(kept)
                rows, first, chosen = rows[kept], first[kept], chosen[kept]
            logits = model(chosen[:, None], cache, first).data[:, 0]  # (rows, vocab)
            if watch:
                watch.look(rows, slice(time + step, time + step + 1))
    return [
        Sample(
            unique[i // samples],
            tokens[i, : made[i]],
            logp[i, : made[i]],
            entropy[i, : made[i]],
            bool(ended[i]),
            watch.of(i, time - lengths[i // samples], time + made[i] - 1) if watch else {},
        )
        for i in range(batch)
    ]


class Watch:
    """Keeps the experts that tokens went to, for every layer that has some, column by column of the batch."""

    def __init__(self, model: DeepSeekModel, batch: int, columns: int) -> None:
        k = model.config.num_experts_per_tok
        self.layers = {
            name: moe for name, moe in model.moe_layers().items() if moe in {b.mlp for b in model.layers}
        }
        self.seen = {name: np.zeros((batch, columns, k), dtype=np.int32) for name in self.layers}

    def look(self, rows: np.ndarray, columns: slice, samples: int = 1) -> None:
        """Take over the choices of the last pass; each of its rows stands for `samples` of the batch."""
        for name, moe in self.layers.items():
            self.seen[name][rows, columns] = np.repeat(to_host(moe.chosen), samples, axis=0)

    def of(self, row: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """One sequence's choices in columns start .. stop - 1."""
        return {name: seen[row, start:stop] for name, seen in self.seen.items()}


def check_prompts(model: DeepSeekModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise UserError for prompts that are empty or too long."""
    limit = model.config.max_position_embeddings
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens} but must be at least 1")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number} has no tokens: a task's prompts must not be empty")
        if len(prompt) + max_new_tokens > limit:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens and up to {max_new_tokens} are to follow, but the "
                f"network reads {limit} at once: ask for shorter completions or prompts"
            )
