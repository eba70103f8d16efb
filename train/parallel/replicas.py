"""What several ranks hold alike: their gradients are added up, and each may step only a share of it.

Data-parallel copies of a network, the two copies of a stage in DualPipe, the embedding at both ends of a
pipeline, an expert that was placed twice: all are tensors with several holders. Those with the same holders
are added up in one message.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from layers import DeepSeekModel
from tinygrad_ds.device import Array, namespace
from train.optimizer import squares
from train.parallel.communicator import Communicator
from train.parallel.units import Unit, shares, whole_units


class Group(NamedTuple):
    """Tensors that the same ranks hold; `units[i]` are those that rank i of them steps."""

    ranks: Communicator
    tensors: list[Unit]
    units: list[list[Unit]]


class Replicas:
    """The network of a rank among all others.

    sharded: each holder of a tensor steps a share of it (ZeRO-1) and gets the rest from the others; else all
    holders step all of it, alike.
    """

    def __init__(self, model: DeepSeekModel, ranks: Communicator, *, sharded: bool) -> None:
        self.model, self.ranks, self.sharded = model, ranks, sharded
        mine = {unit.part.name: unit for unit in whole_units(model)}
        holders: dict[str, tuple[int, ...]] = {}
        for rank, names in enumerate(ranks.everybody([*mine], "what each rank holds")):
            for name in names:
                holders[name] = (*holders.get(name, ()), rank)
        self.holders = holders
        self.alone = [unit for name, unit in mine.items() if len(holders[name]) == 1]
        self.groups: list[Group] = []
        for together in sorted({each for each in holders.values() if len(each) > 1}):
            if ranks.rank in together:
                # Sorted, since the holders may have made their networks in different orders.
                tensors = [mine[name] for name in sorted(mine) if holders[name] == together]
                self.groups.append(Group(ranks.part(together), tensors, shares(tensors, len(together))))

    def tells(self, name: str) -> bool:
        """Whether it is this rank that tells others of a tensor; of what is not trained everybody does."""
        return self.holders.get(name, (self.ranks.rank,))[0] == self.ranks.rank

    def stepped(self) -> list[Unit]:
        """What this rank's optimizer steps."""
        return self.counted() if self.sharded else whole_units(self.model)

    def counted(self) -> list[Unit]:
        """Such that over all ranks every entry of the network is there once."""
        return self.alone + [unit for group in self.groups for unit in group.units[group.ranks.rank]]

    def without_gradient(self) -> list[str]:
        """The names of this rank's tensors that no pass has reached."""
        return [unit.part.name for unit in whole_units(self.model) if unit.grad is None]

    def add_up(self, missing: Sequence[Sequence[str]]) -> None:
        """Put the sum over its holders in place of each gradient; of a share, if sharded.

        missing: from every rank, `without_gradient`. What no holder has a gradient of is left without one.
        """
        lacking = Counter(name for names in missing for name in names)
        for group in self.groups:
            absent = {name for name, times in lacking.items() if times == group.ranks.size}
            units = [[u for u in owned if u.part.name not in absent] for owned in group.units]
            counts = [sum(unit.data.size for unit in owned) for owned in units]
            flat = packed([unit for owned in units for unit in owned], "grad")
            if self.sharded:
                own = units[group.ranks.rank]
                unpack(group.ranks.add_up_pieces(flat, counts, "a share of the gradients"), own, "grad")
            else:
                total = group.ranks.add_up(flat, "the sum of the gradients")
                unpack(total, [unit for owned in units for unit in owned], "grad")

    def share_out(self) -> None:
        """After a step of shares: every holder gets what the others have stepped."""
        for group in self.groups if self.sharded else ():
            counts = [sum(unit.data.size for unit in owned) for owned in group.units]
            piece = packed(group.units[group.ranks.rank], "data")
            joined = group.ranks.join_pieces(piece, counts, "the parameters that others stepped")
            unpack(joined, [unit for owned in group.units for unit in owned], "data")

    def clip(self, max_norm: float) -> float:
        """`clip_grad_norm` over all ranks: of the whole network, each entry once."""
        own = sum(squares(unit.grad) for unit in self.counted() if unit.grad is not None)
        norm = math.sqrt(sum(self.ranks.everybody(own, "the norm of the gradient")))
        if max_norm < norm < math.inf:
            for unit in self.stepped():
                if unit.grad is not None:
                    grad = unit.grad
                    grad *= max_norm / norm
        return norm

    def squares_by_layer(self) -> dict[str, float]:
        """`observe.squares_by_layer` over all ranks."""
        own: dict[str, float] = {}
        for unit in self.counted():
            if unit.grad is not None:
                name = layer_of(unit.part.name, self.model.config.num_hidden_layers)
                own[name] = own.get(name, 0.0) + squares(unit.grad)
        total: dict[str, float] = {}
        for each in self.ranks.everybody(own, "the norms of the gradient by layer"):
            for name, value in each.items():
                total[name] = total.get(name, 0.0) + value
        return total


class ShareOptimizer:
    """An optimizer over a rank's shard; after a step everybody has what the others stepped."""

    def __init__(self, inner: Any, replicas: Replicas) -> None:
        self.inner, self.replicas = inner, replicas

    def moment_arrays(self) -> Iterator[Array]:
        """All arrays of the state that is here."""
        return self.inner.moment_arrays()

    @property
    def lr(self) -> float:
        """The learning rate, as the loop sets it."""
        return self.inner.lr

    @lr.setter
    def lr(self, rate: float) -> None:
        self.inner.lr = rate

    def renew(self, inner: Any, replicas: Replicas) -> None:
        """Go on with other units."""
        self.inner, self.replicas = inner, replicas

    def step(self) -> None:
        """Move this rank's share and collect the rest."""
        self.inner.step()
        self.replicas.share_out()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.inner.zero_grad()


def layer_of(name: str, layers: int) -> str:
    """`embed_tokens`, `layers.0`, .., `norm`, `lm_head`, `mtp.0`, .. of a published name."""
    words = name.removeprefix("model.").split(".")
    if not words[1].isdigit():
        return words[0]
    layer = int(words[1])
    return f"layers.{layer}" if layer < layers else f"mtp.{layer - layers}"


def packed(units: Sequence[Unit], what: str) -> Array:
    """The entries, or the gradients, of units one behind the other; no gradient counts as 0."""
    xp = namespace(units[0].data) if units else np
    arrays = [getattr(unit, what) for unit in units]
    return xp.concatenate(
        [
            (xp.zeros_like(unit.data) if array is None else array).reshape(-1)
            for unit, array in zip(units, arrays)
        ]
        or [xp.zeros(0)]
    )


def unpack(flat: Array, units: Sequence[Unit], what: str) -> None:
    """The inverse of `packed`, in place."""
    start = 0
    for unit in units:
        size = unit.data.size
        if what == "grad" and unit.grad is None:
            whole = unit.part.tensor()
            whole.grad = namespace(unit.data).zeros_like(unit.part.data)
        target = getattr(unit, what)
        target[...] = flat[start : start + size].reshape(unit.data.shape)
        start += size
