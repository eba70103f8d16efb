"""DeepSeekModel: embedding, blocks, final norm and head, with MTP modules behind; its loss and its caches."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import prod
from typing import Any

import numpy as np

import tinygrad_ds as tg
from layers.block import Block
from layers.cache import KVCache, LatentCache, make_cache
from layers.config import DeepSeekConfig
from layers.context import make_context
from layers.decoding import Stepper, covers
from layers.linear import Embedding, Linear
from layers.loss import Losses, count_targets, losses
from layers.module import Module, Part
from layers.moe import MoE
from layers.mtp import MTPModule
from layers.norm import RMSNorm
from layers.precision import recompute
from layers.rope import Rotary
from tinygrad_ds import Tensor, settings
from tinygrad_ds.device import Array, generator, place, to_host
from tinygrad_ds.dtypes import dtype as named_dtype
from tinygrad_ds.ops.decoding import linear_step
from tinygrad_ds.tensor import plain


class DeepSeekModel(Module):
    """A DeepSeek network with its parameters drawn from `seed` (None: left to be filled by a checkpoint).

    dtype: float32, or float64 for exact comparisons. `model(ids)` gives logits (batch, time, vocab). With
    `model.recompute = True` every block and MTP module saves its input alone and computes the rest again in
    backward.
    """

    def __init__(self, config: DeepSeekConfig, seed: int | None = 0, dtype: str = "float32") -> None:
        if named_dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype is {dtype!r} but a model computes in float32 or float64")
        kind = self.dtype = named_dtype(dtype)
        self.config, self.recompute = config, False
        self.rotary = Rotary(config, kind)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, kind)
        self.layers = [Block(config, layer, kind) for layer in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, kind)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, kind)
        depths = range(1, config.num_nextn_predict_layers + 1)
        self.mtp = [MTPModule(config, depth, kind) for depth in depths]
        if seed is not None:
            self.initialize(seed)

    def initialize(self, seed: int) -> None:
        """Matrices normal(0, initializer_range), norms 1, biases 0. A draw depends on seed and name alone."""
        for part in self.published():
            if part.data.ndim < 2:
                part.data[...] = part.name.endswith("norm.weight")
            else:
                random = generator((seed, zlib.crc32(part.name.encode())))
                values = random.normal(0.0, self.config.initializer_range, part.data.shape)
                part.data[...] = place(values, dtype=self.dtype)

    def published(self, path: str = "") -> Iterator[Part]:
        """All tensors under their published names; MTP modules are numbered on after the last layer."""
        for name, value in self.children():
            if isinstance(value, MTPModule):
                name = f"layers.{value.layer}"
            if isinstance(value, Module):
                yield from value.published(f"{path}{'' if name == 'lm_head' else 'model.'}{name}.")

    def __call__(self, ids: Any, cache: KVCache | LatentCache | None = None, first: Any = None) -> Tensor:
        """ids (batch, time) -> logits (batch, time, vocab). See `hidden` for cache and first."""
        if cache is not None:
            return self.read(ids, cache, first)[1]
        return self.head(self.hidden(ids, first=first))

    def read(
        self, ids: Any, cache: KVCache | LatentCache, first: Any = None, *, last: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `hidden` gives for these columns, and the logits of the `last` of them (None: of all)."""
        if np.shape(ids)[-1:] == (1,) and covers(self):
            batch = len(ids := self.checked(ids))
            first = np.zeros(batch, np.int64) if first is None else np.asarray(first).reshape(batch)
            step = Stepper(self, cache)(place(ids[:, 0]), first)
            return Tensor(step.y[:, None]), Tensor(step.logits[:, None])
        with tg.no_grad():
            h = self.trunk(ids, cache=cache, first=first)[0]
            return h, self.head(h if last is None else h[:, h.shape[1] - last :])

    def stepper(self, cache: KVCache | LatentCache) -> Callable[[Array, np.ndarray], np.ndarray]:
        """A function of the next ids (batch,) and of `first` (batch,) that gives logits (batch, vocab)."""
        if covers(self):
            step = Stepper(self, cache)
            return lambda ids, first: to_host(step(place(ids), first).logits)
        return lambda ids, first: to_host(self.read(ids[:, None], cache, first)[1].data)[:, 0]

    def hidden(
        self,
        ids: Any,
        cache: KVCache | LatentCache | None = None,
        first: Any = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """ids (batch, time) -> h (batch, time, hidden) after the final norm.

        cache: earlier columns, to which these are added; nothing is recorded then. first (batch,) or (batch,
        time): the column at which a row, or the document of a token, begins (pads on the left, packed rows).
        states: a list that gets the embeddings and every block's output.  Raises ValueError for ids that
        cannot be.
        """
        with tg.no_grad() if cache is not None else nullcontext():
            return self.trunk(ids, cache=cache, first=first, states=states)[0]

    def trunk(
        self,
        ids: Any,
        *,
        cache: KVCache | LatentCache | None = None,
        first: Any = None,
        states: list[Tensor] | None = None,
        balance: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """`hidden`, recorded if recording is on, and the balance loss of every block."""
        ids = self.checked(ids)
        context = make_context(self.rotary, *ids.shape, first=first, cache=cache, balance=balance)
        x = self.embed_tokens(place(ids))
        balances = []
        for block in self.layers:
            if states is not None:
                states.append(x)
            if self.recompute:
                x, loss = recompute(lambda x, block=block: block(x, context), x)
            else:
                x, loss = block(x, context)
            balances.append(loss)
        if states is not None:
            states.append(x)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x), balances

    def mtp_hidden(
        self,
        depth: int,
        ids: Any,
        h: Tensor,
        *,
        cache: KVCache | LatentCache | None = None,
        first: Any = None,
        balance: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """h^k of MTP module k = depth, counted from 1: ids t_{i+k} (batch, time), h = h^{k-1}_i (.., hidden).

        `head` of it predicts t_{i+k+1}. cache: one of `new_mtp_caches`; column i of it is entry i.
        """
        ids = self.checked(ids)
        context = make_context(
            self.rotary, *ids.shape, first=first, cache=cache, balance=balance, offset=depth
        )
        module = self.mtp[depth - 1]
        with tg.no_grad() if cache is not None else nullcontext():
            embedded = self.embed_tokens(place(ids))
            if self.recompute:
                h, loss = recompute(lambda h, embedded: module(h, embedded, context), h, embedded)
            else:
                h, loss = module(h, embedded, context)
        if cache is not None:
            cache.advance(ids.shape[1])
        return h, loss

    def head(self, h: Tensor) -> Tensor:
        """h (.., hidden) after a final norm -> logits (.., vocab)."""
        if settings.current().recording:
            return tg.linear(h, self.head_weight)
        weight, leading = self.head_weight.data, h.shape[:-1]
        rows = h.data.reshape(prod(leading), h.shape[-1])
        return Tensor(linear_step(rows, weight).reshape(*leading, len(weight)))

    @property
    def head_weight(self) -> Tensor:
        """The matrix (vocab, hidden) of the head: its own, or the embedding's where both are one."""
        return (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head).weight

    def checked(self, ids: Any) -> np.ndarray:
        """ids as an array (batch, time). Raises ValueError for a shape or an id that cannot be."""
        ids, vocab = to_host(plain(ids)), self.config.vocab_size
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids are {ids.dtype}{ids.shape} but must be integers of shape (batch, time)")
        if ids.size and not 0 <= (low := ids.min()) <= (high := ids.max()) < vocab:
            wrong = low if low < 0 else high
            raise ValueError(f"ids hold {wrong} but vocab_size is {vocab}: 0 to {vocab - 1}")
        return ids

    def loss(
        self,
        ids: Any,
        targets: Any,
        mtp_weight: float = 0.0,
        balance_weight: float = 0.0,
        *,
        first: Any = None,
        count: float | Array | None = None,
    ) -> Tensor:
        """L = L_main + mtp_weight * mean_k L_k + balance_weight * L_balance, 0-d. `losses` has the parts."""
        return self.losses(ids, targets, mtp_weight, balance_weight, first=first, count=count).total

    def losses(
        self,
        ids: Any,
        targets: Any,
        mtp_weight: float = 0.0,
        balance_weight: float = 0.0,
        *,
        first: Any = None,
        count: float | Array | None = None,
    ) -> Losses:
        """The loss and its parts; targets (batch, time) are aligned with ids, -100 is ignored."""
        return losses(self, ids, targets, mtp_weight, balance_weight, first=first, count=count)

    def count_targets(self, targets: Any) -> np.ndarray:
        """What the parts of the loss are divided by; its sum over micro-batches is the `count` of each."""
        return count_targets(to_host(plain(targets)), len(self.mtp))

    def new_cache(self, batch: int) -> KVCache | LatentCache:
        """An empty cache for `batch` sequences, for all layers of the trunk."""
        return make_cache(self.config, len(self.layers), batch, self.dtype)

    def new_mtp_caches(self, batch: int) -> list[KVCache | LatentCache]:
        """An empty cache for each MTP module."""
        return [make_cache(self.config, 1, batch, self.dtype) for _ in self.mtp]

    def moe_layers(self) -> dict[str, MoE]:
        """Every mixture of experts by its published name, `model.layers.3.mlp`, MTP modules included."""
        blocks = dict(enumerate(self.layers)) | {module.layer: module.block for module in self.mtp}
        return {f"model.layers.{i}.mlp": b.mlp for i, b in blocks.items() if isinstance(b.mlp, MoE)}

    def update_router_bias(self, gamma: float) -> None:
        """Move every router's bias towards even loads, after each step; and count loads anew."""
        for moe in self.moe_layers().values():
            moe.update_router_bias(gamma)
