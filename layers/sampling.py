"""From logits to tokens: temperature, top-p, and draws whose random numbers belong to a row and a position.

A draw never depends on who else is in the batch or on how many tokens a pass made: every token of every row
has its own few numbers, found from seed, row and position.
"""

import math

import numpy as np

DRAFT, ACCEPT, CHOOSE = range(3)  # what a token's three numbers are for


def probabilities(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """The distribution that the next token is drawn from. logits (..., vocab) -> p (..., vocab) in float64.

    Temperature 0 puts all mass on the largest logit, the first of equals. Otherwise p = softmax(logits /
    temperature), cut by `nucleus`.
    """
    logits = logits.astype(np.float64)
    if temperature == 0:
        p = np.zeros_like(logits)
        np.put_along_axis(p, logits.argmax(axis=-1, keepdims=True), 1.0, axis=-1)
        return p
    p = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    p /= p.sum(axis=-1, keepdims=True)
    return p if top_p == 1 else nucleus(p, top_p)


def nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """p on the smallest set of tokens with mass of at least top_p, 0 elsewhere, made to sum to 1.

    The likeliest come first and the lower index of equals: a token stays if those before it have less than
    top_p. Holtzman et al. 2019.
    """
    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    before = np.zeros_like(ranked)
    before[..., 1:] = np.cumsum(ranked[..., :-1], axis=-1)
    kept = np.where(before < top_p, ranked, 0.0)
    cut = np.zeros_like(p)
    np.put_along_axis(cut, order, kept / kept.sum(axis=-1, keepdims=True), axis=-1)
    return cut


def draw(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The token at share u of all weight, going up by index.

    weights (..., vocab) >= 0, u (...) in [0, 1) -> (...). A token without weight is never drawn, whatever
    rounding does.
    """
    reached = np.cumsum(weights, axis=-1)
    total = reached[..., -1:]
    last = (reached >= total).argmax(axis=-1)  # the last token that has weight
    return np.minimum((reached <= u[..., None] * total).sum(axis=-1), last)


def uniforms(seed: int, start: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1) for the `count` tokens from position start[row] on: (rows, count, 3).

    They depend on seed, row and position alone: going on later from a longer prompt finds the same ones.
    """
    numbers = np.empty((len(start), count, 3))
    for row, position in enumerate(start.tolist()):
        source = np.random.PCG64((seed, row))
        source.advance(3 * position)
        np.random.Generator(source).random(out=numbers[row])
    return numbers


class Sampler:
    """How tokens are drawn, with the numbers for `count` tokens of each row from position lengths[row] on.

    Raises ValueError for settings that name no distribution.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, lengths: np.ndarray, count: int) -> None:
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(
                f"temperature is {temperature} but must be 0 (greedy) or a finite number above it"
            )
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p} but must be above 0 and at most 1: temperature 0 is greedy")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed is {seed!r} but must be a whole number of at least 0")
        self.temperature, self.top_p = temperature, top_p
        self.u = uniforms(seed, lengths, count)  # (rows, count, 3)

    def distribution(self, logits: np.ndarray) -> np.ndarray:
        """logits (..., vocab) -> probabilities of the same shape."""
        return probabilities(logits, self.temperature, self.top_p)

    def numbers(self, made: np.ndarray, count: int) -> np.ndarray:
        """The numbers for the next `count` tokens of rows that have made[row] new ones: (rows, count, 3)."""
        return np.take_along_axis(self.u, (made[:, None] + np.arange(count))[..., None], axis=1)
