"""Generating text: prompts in, tokens out, over caches that grow and without a tape.

Every pass of the model reads the columns that the caches do not have yet: the prompt at first, then the
last token and, with speculation, the tokens drafted after it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import tinygrad_ds as tg
from layers.config import DeepSeekConfig
from layers.model import DeepSeekModel
from layers.sampling import CHOOSE, Sampler, draw
from layers.speculative import Drafter, SpeculationStats, verify
from tinygrad_ds import Tensor
from tinygrad_ds.device import to_host


def generate(
    model: DeepSeekModel,
    ids: Any,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_tokens: int | Iterable[int] = (),
    speculative: bool = False,
    seed: int = 0,
    *,
    on_token: Callable[[int, int], None] | None = None,
    pad_token: int | None = None,
    stats: SpeculationStats | None = None,
) -> np.ndarray:
    """The prompts and what the model says after them: ids (batch, time) -> (batch, time + max_new_tokens).

    ids: an array (batch, time), or a list of prompts of any lengths; shorter ones are padded on the left to
    the longest, which is `time`. A row ends with the first of its stop tokens, or with max_new_tokens;
    pad_token fills what is left (by default the config's pad_token_id, else the first stop token, else 0).

    temperature 0 takes the likeliest token (the first of equals); otherwise tokens are drawn from
    softmax(logits / temperature), cut to the smallest set of mass top_p. Random numbers depend on seed, row
    and position only. speculative drafts with the model's MTP modules: the same tokens if greedy, the same
    distribution otherwise.

    on_token(row, token) is called for every new token, pads excepted, as soon as it stands. stats, if
    given, counts passes, drafts and acceptances.  Raises ValueError for prompts or settings that cannot be.
    """
    stops = [stop_tokens] if isinstance(stop_tokens, int | np.integer) else list(stop_tokens)
    if pad_token is None:
        pad_token = model.config.pad_token_id
    if pad_token is None:
        pad_token = stops[0] if stops else 0
    if speculative and not model.mtp:
        raise ValueError(
            "speculative=True but the model has no MTP module to draft with: use speculative=False"
        )
    prompts = [np.asarray(to_host(row)) for row in (ids.data if isinstance(ids, Tensor) else ids)]
    # While one row goes on, tokens are drafted for all: past the end of a row that has almost ended.
    spare = len(model.mtp) if speculative and len(prompts) > 1 else 0
    check_prompts(prompts, max_new_tokens, spare, pad_token, model.config)
    rows = Rows(prompts, max_new_tokens, stops, pad_token, on_token)
    sampler = Sampler(temperature, top_p, seed, rows.lengths, max_new_tokens + spare + 1)
    stats = SpeculationStats() if stats is None else stats
    with tg.no_grad():
        if max_new_tokens and speculative:
            decode_speculatively(model, rows, sampler, Drafter(model, len(prompts)), stats)
        elif max_new_tokens:
            decode(model, rows, sampler, stats)
    return rows.out


class Rows:
    """The sequences being written. Prompts end at column `time`, so that all rows go on together."""

    def __init__(
        self,
        prompts: list[np.ndarray],
        max_new_tokens: int,
        stops: list[int],
        pad_token: int,
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.lengths = np.array([len(prompt) for prompt in prompts])  # (batch,)
        self.time, self.limit = int(self.lengths.max()), max_new_tokens
        self.out = np.full((len(prompts), self.time + max_new_tokens), pad_token)
        for row, prompt in zip(self.out, prompts):
            row[self.time - len(prompt) : self.time] = prompt
        self.made = np.zeros(len(prompts), dtype=int)  # new tokens of each row
        self.live = np.full(len(prompts), max_new_tokens > 0)
        self.stops, self.on_token = frozenset(stops), on_token

    def say(self, row: int, tokens: list[int]) -> int:
        """Put tokens behind a row until it ends; how many were put."""
        for said, token in enumerate(tokens, start=1):
            self.out[row, self.time + self.made[row]] = token
            self.made[row] += 1
            if self.on_token is not None:
                self.on_token(row, token)
            if token in self.stops or self.made[row] == self.limit:
                self.live[row] = False
                return said
        return len(tokens)


def decode(model: DeepSeekModel, rows: Rows, sampler: Sampler, stats: SpeculationStats) -> None:
    """Write all rows to their ends, a token of each a pass. `first` is the column where a row begins."""
    cache, first = model.new_cache(len(rows.out)), rows.time - rows.lengths  # (batch,)
    window = rows.out[:, : rows.time]  # (batch, columns) that no pass has read
    logits = to_host(model.read(window, cache, first if first.any() else None, last=1)[1].data)[:, 0]
    step = model.stepper(cache)
    while True:
        check_finite(logits, rows)
        if sampler.temperature == 0:  # what a distribution with one token comes to
            following = logits.argmax(axis=-1)  # (batch,)
        else:
            following = draw(sampler.distribution(logits), sampler.numbers(rows.made, 1)[:, 0, CHOOSE])
        ended = False
        for row, token in enumerate(following.tolist()):
            if rows.live[row]:
                stats.count(0, 0, rows.say(row, [token]))
                ended |= not rows.live[row]
        if ended:
            if not rows.live.any():
                return
            first = np.where(rows.live, first, cache.length)  # a row that ended sees nothing
        logits = step(following, first)


def decode_speculatively(
    model: DeepSeekModel, rows: Rows, sampler: Sampler, drafter: Drafter, stats: SpeculationStats
) -> None:
    """The same with drafts. Rows keep different numbers of them, so `first` moves too."""
    batch, modules = len(rows.out), len(model.mtp)
    cache = model.new_cache(batch)
    first = rows.time - rows.lengths  # (batch,)
    window = rows.out[:, : rows.time]  # (batch, columns) that no pass has read, with the drafts at the end
    drafts, q = np.empty((batch, 0), dtype=int), np.empty((batch, 0, model.config.vocab_size))
    while rows.live.any():
        start, known = cache.length, window.shape[1] - drafts.shape[1]
        h, answers = model.read(
            window, cache, first if first.any() else None, last=drafts.shape[1] + 1
        )  # (batch, columns, hidden), (batch, drafts + 1, vocab)
        logits = to_host(answers.data)
        check_finite(logits, rows)
        p, u = sampler.distribution(logits), sampler.numbers(rows.made, logits.shape[1])
        accepted, following = verify(p, drafts, q, u)
        for row in np.flatnonzero(rows.live).tolist():
            useful = min(drafts.shape[1], rows.limit - rows.made[row] - 1)
            said = rows.say(row, [*drafts[row, : accepted[row]].tolist(), int(following[row])])
            stats.count(useful, min(accepted[row], useful, said), said)
        if not rows.live.any():
            return
        # Rows keep different numbers of columns: shorter ones move right, over their refused drafts.
        kept = known + accepted
        columns = int(kept[rows.live].max())
        kept[~rows.live] = columns
        tokens = np.pad(window[:, 1:columns], ((0, 0), (0, 1)))  # (batch, columns): each column's next one
        tokens[np.arange(batch), kept - 1] = following
        count = min(modules, int((rows.limit - rows.made)[rows.live].max()) - 1)
        if count:
            drafts, q = drafter.propose(h.data[:, :columns], tokens, kept, first, count, sampler, rows.made)
        else:
            drafts, q = drafts[:, :0], q[:, :0]
        cache.truncate(start + columns)
        cache.shift_right(columns - kept)
        first = np.where(rows.live, first + columns - kept, cache.length)
        window = np.concatenate([following[:, None], drafts], axis=1)


def check_prompts(
    prompts: list[np.ndarray], max_new_tokens: int, spare: int, pad_token: int, config: DeepSeekConfig
) -> None:
    """Raise ValueError for what is no row of ids, or leaves no room for new tokens and `spare` drafts."""
    limit, vocab = config.max_position_embeddings, config.vocab_size
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens} but must be at least 0")
    if not 0 <= pad_token < vocab:
        raise ValueError(
            f"pad_token is {pad_token} but vocab_size is {vocab}: pass one from 0 to {vocab - 1}"
        )
    if not prompts:
        raise ValueError("there is no prompt: pass ids of shape (batch, time) or a list of prompts")
    for row, prompt in enumerate(prompts):
        if prompt.size == 0:
            raise ValueError(
                f"prompt {row} is empty: begin with bos_token_id, which is {config.bos_token_id}"
            )
        if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
            raise ValueError(f"prompt {row} is {prompt.dtype}{prompt.shape} but must be a row of integers")
        if not 0 <= prompt.min() <= prompt.max() < vocab:
            wrong = prompt.min() if prompt.min() < 0 else prompt.max()
            raise ValueError(f"prompt {row} holds id {wrong} but vocab_size is {vocab}: 0 to {vocab - 1}")
        if len(prompt) + max_new_tokens + spare > limit:
            drafted = f" (and {spare} may be drafted past them)" if spare else ""
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens and {max_new_tokens} are to follow{drafted}, but "
                f"max_position_embeddings is {limit}: shorten the prompt or ask for fewer"
            )


def check_finite(logits: np.ndarray, rows: Rows) -> None:
    """Raise ValueError where the model has no answer: a NaN would otherwise look like a choice.

    logits (batch, .., vocab).
    """
    if math.isfinite(logits.sum()):  # then all of them are; a sum may also overflow
        return
    wrong = rows.live & ~np.isfinite(logits).all(axis=tuple(range(1, logits.ndim)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"the logits of row {row} are not finite after {rows.lengths[row] + rows.made[row]} tokens: "
            "look for NaN or infinity in the weights, or compute in float64"
        )
