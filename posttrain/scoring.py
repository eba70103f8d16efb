"""Log-probabilities of given completions under a network, with their gradient."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekModel
from posttrain.packing import Packed
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, place
from train.batches import IGNORED


def predictions(model: DeepSeekModel, packed: Packed) -> tuple[Tensor, np.ndarray]:
    """The logits (tokens, vocab) of all targets that count, row by row, and those targets (tokens,)."""
    where = np.flatnonzero(packed.targets != IGNORED)
    h = model.trunk(packed.ids, first=packed.first)[0]
    rows = h.reshape(packed.ids.size, h.shape[-1])[place(where)]
    return model.head(rows), packed.targets.reshape(-1)[where]


def log_probs(model: DeepSeekModel, packed: Packed, temperature: float = 1.0) -> Tensor:
    """ln p (tokens,) of all targets that count, row by row, under softmax(logits / temperature).

    Only those rows go through the head.
    """
    logits, targets = predictions(model, packed)
    if temperature != 1:
        logits = logits / temperature
    return -tg.cross_entropy(logits, place(targets), reduction="none")


class Table(NamedTuple):
    """Where the tokens of each sequence stand in what `log_probs` gives."""

    at: np.ndarray  # (sequences, longest)  0 where there is none
    mask: np.ndarray  # (sequences, longest) bool

    def spread(self, flat: Tensor) -> Tensor:
        """(tokens,) as (sequences, longest); what the mask leaves out has no meaning."""
        return flat[place(self.at)]

    def fill(self, rows: list[np.ndarray]) -> np.ndarray:
        """One array for each sequence as (sequences, longest), 0 where there is none."""
        filled = np.zeros(self.mask.shape)
        filled[self.mask] = np.concatenate(rows)
        return filled


def table(packed: Packed, prompts: list[int], completions: list[int]) -> Table:
    """The table of packed sequences, whose prompts and completions have these numbers of tokens."""
    flat = np.cumsum(packed.targets != IGNORED) - 1
    row, start = packed.starts.T
    begins = flat[row * packed.ids.shape[1] + start + np.array(prompts) - 1]  # (sequences,)
    steps = np.arange(max(completions))
    mask = steps < np.array(completions)[:, None]
    return Table(np.where(mask, begins[:, None] + steps, 0), mask)


@contextmanager
def replayed(model: DeepSeekModel, experts: Mapping[str, Array]) -> Iterator[None]:
    """Let the tokens of the next passes go to the experts of an earlier one, (rows, time, K) by layer."""
    layers = model.moe_layers()
    for name, chosen in experts.items():
        layers[name].replay = place(chosen)
    try:
        yield
    finally:
        for name in experts:
            layers[name].replay = None
