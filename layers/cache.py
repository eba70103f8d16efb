"""Caches: what attention keeps of the tokens so far. KVCache for MHA, GQA and MQA, LatentCache for MLA.

One object serves all layers of a model, each with its own slot. Memory is reserved in blocks of columns, so
that growing token by token copies rarely. `nbytes` counts what is in use: the figure that papers quote per
token.
"""

import numpy as np

from layers.config import DeepSeekConfig
from tinygrad_ds.device import Array, here, namespace

BLOCK = 256  # columns by which a cache grows


class Cache:
    """`layers` slots for `batch` sequences of `length` columns, each `heads` rows of `width` numbers."""

    def __init__(self, layers: int, batch: int, heads: int, width: int, dtype: np.dtype) -> None:
        self.batch, self.length = batch, 0
        self._rows = here().empty((layers, batch, heads, 0, width), dtype=dtype)

    @property
    def capacity(self) -> int:
        """Columns for which memory is reserved."""
        return self._rows.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes in use: those of `length` columns."""
        return self._rows[:, :, :, : self.length].nbytes

    def room(self, layer: int | slice, batch: int, time: int) -> Array:
        """A layer's rows (batch, heads, capacity, width), with room for `time` columns behind those so far;
        those of several layers for a slice.

        `advance` counts the new columns in. Raises ValueError for another batch than the cache was made for.
        """
        if batch != self.batch:
            raise ValueError(
                f"the cache holds {self.batch} sequences but {batch} came: make one with new_cache({batch})"
            )
        if self.length + time > self.capacity:
            self._grow(self.length + time)
        return self._rows[layer]

    def _append(self, layer: int, rows: Array) -> Array:
        """Write rows (batch, heads, time, width) behind the columns so far -> all rows of that layer."""
        batch, _, time, _ = rows.shape
        slot, end = self.room(layer, batch, time), self.length + time
        slot[:, :, self.length : end] = rows
        return slot[:, :, :end]

    def _grow(self, columns: int) -> None:
        """Reserve whole blocks, a quarter more than now at least: n tokens one by one cost O(n) copies."""
        wanted = max(columns, self.capacity + self.capacity // 4)
        shape = list(self._rows.shape)
        shape[3] = -(-wanted // BLOCK) * BLOCK
        grown = namespace(self._rows).empty(shape, dtype=self._rows.dtype)
        grown[:, :, :, : self.length] = self._rows[:, :, :, : self.length]
        self._rows = grown

    def advance(self, time: int) -> None:
        """Count `time` columns in, once every layer has appended them: a pass that failed leaves no trace."""
        self.length += time

    def truncate(self, length: int) -> None:
        """Forget all columns from `length` on. Raises ValueError if there are not that many."""
        if not 0 <= length <= self.length:
            raise ValueError(
                f"length is {length} but the cache holds {self.length} columns: 0 to {self.length}"
            )
        self.length = length

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order; one that is named twice is there twice.

        So sequences that have ended leave, and several continuations share the pass over their prompt.
        rows (new batch,), 0 to batch - 1.
        """
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows < 0).any() or (rows >= self.batch).any():
            raise ValueError(f"rows are {rows.tolist()} but must be from 0 to {self.batch - 1}")
        shape = list(self._rows.shape)
        shape[1] = len(rows)
        kept = namespace(self._rows).empty(shape, dtype=self._rows.dtype)
        kept[:, :, :, : self.length] = self._rows[:, rows, :, : self.length]
        self._rows, self.batch = kept, len(rows)

    def shift_right(self, columns: Array) -> None:
        """Move row b by columns[b] to the right, over the columns at its end, leaving pads at its left.

        So rows that are padded on the right, or keep fewer drafted tokens than others, end at the same column
        again; `first` of these rows grows by as much. columns (batch,), 0 to length.
        """
        columns = np.asarray(columns)
        if columns.shape != (self.batch,) or (columns < 0).any() or (columns > self.length).any():
            raise ValueError(
                f"columns are {columns.tolist()} but must be {self.batch} numbers from 0 to {self.length}"
            )
        for row, by in enumerate(columns.tolist()):
            if by:
                kept = self._rows[:, row, :, : self.length - by].copy()
                self._rows[:, row, :, by : self.length] = kept


class LatentCache(Cache):
    """MLA's cache: c_kv (r numbers, after its norm) and RoPE(k_r) (d_r) a token and layer, for all heads."""

    def __init__(self, layers: int, batch: int, width: int, dtype: np.dtype) -> None:
        super().__init__(layers, batch, 1, width, dtype)

    def append(self, layer: int, latent: Array) -> Array:
        """latent (batch, 1, time, r + d_r) = [c_kv | RoPE(k_r)] -> all of them, length + time columns."""
        return self._append(layer, latent)


class KVCache(Cache):
    """The cache of attention with `heads` key heads: for a token and layer heads * (d_qk + d_v) numbers."""

    def __init__(self, layers: int, batch: int, heads: int, qk_dim: int, v_dim: int, dtype: np.dtype) -> None:
        super().__init__(layers, batch, heads, qk_dim + v_dim, dtype)
        self.qk_dim = qk_dim

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """k (batch, heads, time, d_qk), v (batch, heads, time, d_v) -> all of them, length + time columns."""
        rows = self._append(layer, namespace(k).concatenate([k, v], axis=-1))
        return rows[..., : self.qk_dim], rows[..., self.qk_dim :]


def make_cache(config: DeepSeekConfig, layers: int, batch: int, dtype: np.dtype) -> KVCache | LatentCache:
    """An empty cache for `batch` sequences in so many layers of a network."""
    if config.attention_kind == "mla":
        return LatentCache(layers, batch, config.kv_lora_rank + config.qk_rope_head_dim, dtype)
    heads, d_qk, d_v = config.num_key_value_heads, config.qk_head_dim, config.v_head_dim
    return KVCache(layers, batch, heads, d_qk, d_v, dtype)
