"""A network with holes: the parts that a rank holds, or that one stage of the pipeline is made of.

All parts keep their names and places, so that optimizers, checkpoints and the loss see a DeepSeekModel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layers import DeepSeekModel
from layers.block import Block
from layers.cache import KVCache, LatentCache
from layers.context import make_context
from layers.loss import Losses, added, count_targets
from layers.precision import recompute
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, here, place, to_host
from tinygrad_ds.tensor import plain
from train.errors import UserError
from train.parallel.experts import PlacedExperts
from train.pipeline.interleave import Interleaver


class Elsewhere(Block):
    """A block that another rank holds."""

    def __init__(self) -> None:
        vars(self)["mlp"] = None  # neither experts nor any other part


class Stage(DeepSeekModel):
    """The layers of a network that are in `layers`, sharing its arrays.

    A stage that begins the network has the embedding. One that ends it has the last norm, the head and the
    MTP modules, and the embedding too if those need it. In between `entering` is what comes from the stage
    before, and a pass leaves its output for the next in `leaving`. `interleaver` is told where components
    begin.
    """

    def __init__(self, model: DeepSeekModel, layers: Sequence[int], interleaver: Interleaver) -> None:
        vars(self).update(vars(model))
        self.held, self.interleaver = sorted(layers), interleaver
        self.layers = [block if i in layers else Elsewhere() for i, block in enumerate(model.layers)]
        self.first, self.last = 0 in layers, len(model.layers) - 1 in layers
        self.entering: Tensor | None = None
        self.leaving: Tensor | None = None
        absent = [] if self.last else ["norm", "lm_head"]
        if not self.last:
            self.mtp = []
        if not (self.first or (self.last and (model.mtp or model.config.tie_word_embeddings))):
            absent.append("embed_tokens")
        for name in absent:
            vars(self).pop(name, None)

    def enter(self, x: Tensor | None) -> None:
        """The next pass begins with x; None: with the embedding."""
        self.entering, self.leaving = x, None

    def leave(self) -> Tensor | None:
        """The output of the last pass, None where the network ends; the stage forgets both ends."""
        x, self.entering, self.leaving = self.leaving, None, None
        return x

    def trunk(
        self,
        ids: Any,
        *,
        cache: KVCache | LatentCache | None = None,
        first: Any = None,
        states: list[Tensor] | None = None,
        balance: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """What goes on to the next stage, after the final norm if there is none; and the balance losses."""
        if cache is not None or states is not None:
            raise ValueError("a stage of a pipeline has no cache and no states: use the whole network")
        ids = self.checked(ids)
        context = make_context(self.rotary, *ids.shape, first=first, balance=balance)
        border = self.interleaver.border
        x = self.entering if self.entering is not None else self.embed_tokens(place(ids))
        balances = []
        for i in self.held:
            block, x = self.layers[i], border(x, f"attention {i}")
            if self.recompute:  # as one component
                x, loss = recompute(lambda x, block=block: block(x, context), x)
                balances.append(loss)
                continue
            x = block.attend(x, context)
            apart = isinstance(getattr(block.mlp, "experts", None), PlacedExperts)
            x, loss = block.feed_forward(border(x, f"{'dispatch' if apart else 'feed forward'} {i}"), context)
            balances.append(loss)
        if not self.last:
            return x, balances
        return self.norm(border(x, "head")), balances

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
        """The stage's share of the loss. Before the last stage that is what its balance losses add."""
        if self.last:
            return super().losses(ids, targets, mtp_weight, balance_weight, first=first, count=count)
        h, balances = self.trunk(ids, first=first, balance=bool(balance_weight))
        self.leaving = h
        zero = Tensor(here().zeros((), dtype=h.dtype))
        if not balance_weight:
            return Losses(zero, zero, None, None)
        sequences = len(ids) if count is None or np.ndim(count) == 0 else np.asarray(count)[-1]
        balance = added(balances) * (len(ids) / sequences)
        return Losses(balance_weight * balance, zero, None, balance)

    def count_targets(self, targets: Any) -> np.ndarray:
        """As for the whole network, wherever the MTP modules are."""
        return count_targets(to_host(plain(targets)), self.config.num_nextn_predict_layers)


def split_layers(layers: int, stages: int) -> list[range]:
    """The layers of every stage, as evenly as can be; the later ones have fewer, as the last has the head.

    Raises UserError where a stage would have none.
    """
    if stages > layers:
        raise UserError(
            f"the network has {layers} layers but the pipeline {stages} stages, each of which needs one: set "
            f"num_hidden_layers to {stages} or more, or take fewer ranks"
        )
    ends = [-(-layers * (s + 1) // stages) for s in range(stages)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends)]
