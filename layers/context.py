"""Context: what all blocks of one pass share, so that a block is a function of its input and this."""

from typing import Any, NamedTuple

import numpy as np

from layers.cache import KVCache, LatentCache
from layers.rope import Rotary
from tinygrad_ds.device import Array


class Context(NamedTuple):
    """One pass over `time` new columns of a batch.

    Columns count from the start of the cache, pads included; positions count from a row's first token.
    """

    cos: Array  # (time, 1, d/2), or (batch, time, 1, d/2) where rows start at different columns
    sin: Array
    first: np.ndarray | None = None  # (batch, time)  the lowest column that a query sees
    cache: Any = None  # a KVCache or a LatentCache, as the attention needs it
    balance: bool = False  # is the balance loss wanted?


def make_context(
    rotary: Rotary,
    batch: int,
    time: int,
    *,
    first: np.ndarray | None = None,
    cache: KVCache | LatentCache | None = None,
    balance: bool = False,
    offset: int = 0,
) -> Context:
    """The context for `time` columns behind those in the cache.

    first (batch,) or (batch, time): where a row's tokens, or the document of each token, begin: pads on the
    left and sequences packed into one row. offset: what an MTP module adds to positions. Raises ValueError
    for a `first` of another shape.
    """
    columns = np.arange(time) + (cache.length if cache is not None else 0)  # (time,)
    if first is None:
        return Context(*rotary(columns[:, None] + offset), None, cache, balance)
    first = np.asarray(first)
    if first.shape not in ((batch,), (batch, time)):
        raise ValueError(
            f"first has shape {first.shape} but must be {(batch,)} or {(batch, time)}: a column each"
        )
    first = np.array(np.broadcast_to(first if first.ndim == 2 else first[:, None], (batch, time)))
    positions = np.maximum(columns - first, 0) + offset  # (batch, time)
    return Context(*rotary(positions[..., None]), first, cache, balance)
