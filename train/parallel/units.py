"""What a rank holds, piece by piece under the published names, and who steps which piece.

A `Unit` is a published tensor, or some rows of one. An optimizer works on a `Shard` of units: all that a rank
holds, or (ZeRO-1, Rajbhandari et al. 2020) its own share of what several ranks hold alike.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from layers import DeepSeekModel
from layers.module import Module, Part, View
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array
from train.muon import is_hidden_matrix


class Unit(NamedTuple):
    """Rows `start` to `stop` - 1 of a published tensor, which is a piece of a leaf."""

    part: Part
    start: int
    stop: int

    @property
    def label(self) -> str:
        """Its name in the state of an optimizer."""
        return f"{self.part.name}[{self.start}:{self.stop}]"

    @property
    def tensor(self) -> View:
        """The rows as a Tensor that shares memory with the leaf."""
        return View(self.part.leaf, rows_of(self.part.index, self.start, self.stop))

    @property
    def data(self) -> Array:
        """The entries, in the leaf's memory."""
        return self.part.data[self.start : self.stop]

    @property
    def grad(self) -> Array | None:
        """The gradient, in the leaf's memory."""
        whole = self.part.tensor().grad
        return None if whole is None else whole[self.start : self.stop]


def rows_of(index: Any, start: int, stop: int) -> Any:
    """The index into a leaf of rows of a published tensor, which is `leaf.data[index]`, or the whole leaf."""
    if index is None:
        return slice(start, stop)
    if isinstance(index, slice):
        first = index.start or 0
        return slice(first + start, first + stop)
    if isinstance(index, tuple):
        return (*index[:-1], rows_of(index[-1], start, stop))
    return (index, slice(start, stop))


def whole_units(model: Module) -> list[Unit]:
    """Everything that is trained, each published tensor in one."""
    return [Unit(part, 0, len(part.data)) for part in model.published() if part.leaf.requires_grad]


def shares(units: Sequence[Unit], holders: int) -> list[list[Unit]]:
    """The units cut up among `holders` ranks, about evenly: what is stepped as a whole goes whole to who has
    least, of the rest everybody gets some rows.
    """
    given: list[list[Unit]] = [[] for _ in range(holders)]
    filled = [0] * holders
    for unit in sorted(units, key=lambda unit: -unit.data.size):
        if is_hidden_matrix(unit.part.name, unit.part.data.shape):
            least = filled.index(min(filled))
            given[least].append(unit)
            filled[least] += unit.data.size
        else:
            ends = [unit.stop * (i + 1) // holders for i in range(holders)]
            for i, (start, stop) in enumerate(zip([0, *ends], ends)):
                if start < stop:
                    given[i].append(Unit(unit.part, start, stop))
    return given


class Shard(Module):
    """The units that a rank's optimizer steps, in place of the network that they belong to."""

    def __init__(self, model: DeepSeekModel, units: Iterable[Unit]) -> None:
        self.units = tuple(units)
        self.network = (model,)  # in a tuple it is no sub-module

    def named_leaves(self, path: str = "") -> Iterator[tuple[str, Tensor]]:
        """The units by their labels."""
        return ((unit.label, unit.tensor) for unit in self.units)

    def published(self, path: str = "") -> Iterator[Part]:
        """The units that are whole tensors, as Muon wants matrices."""
        whole = (unit.part for unit in self.units)
        return (part for part, unit in zip(whole, self.units) if unit.stop - unit.start == len(part.data))

    def zero_grad(self) -> None:
        """Forget all gradients of the network."""
        self.network[0].zero_grad()


class Place(NamedTuple):
    """Where a published tensor lies in a whole network: the path of its leaf, and the piece of it."""

    path: str
    piece: Any
    shape: tuple[int, ...]  # of the leaf


def places(model: DeepSeekModel) -> dict[str, Place]:
    """Of all that is trained in a whole network, by published name."""
    paths = {id(leaf): path for path, leaf in model.named_leaves()}
    return {
        part.name: Place(paths[id(part.leaf)], part.index, part.leaf.shape)
        for part in model.published()
        if part.leaf.requires_grad
    }


def to_whole(pieces: Iterable[Mapping[str, np.ndarray]], where: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """The state of an optimizer of the whole network from those of all ranks' shards.

    Entries of shards are called `m.<label>` after the units; those of a whole network after its leaves. What
    is of no unit, such as the number of steps or Muon's momenta, is the same in both.
    """
    whole: dict[str, np.ndarray] = {}
    for state in pieces:
        for key, values in state.items():
            if "[" not in key:
                whole[key] = values
                continue
            kind, name, start, stop = parsed(key)
            place = where[name]
            target = whole.setdefault(f"{kind}.{place.path}", np.zeros(place.shape, values.dtype))
            target[rows_of(place.piece, start, stop)] = values
    return whole


def of_shard(
    keys: Iterable[str], whole: Mapping[str, np.ndarray], where: Mapping[str, Place]
) -> dict[str, np.ndarray]:
    """The inverse: what a shard, whose state has these keys, takes from the state of the whole network."""
    state = {}
    for key in keys:
        if "[" not in key:
            source: str = key
            piece: Any = ...
        else:
            kind, name, start, stop = parsed(key)
            source, piece = f"{kind}.{where[name].path}", rows_of(where[name].piece, start, stop)
        if source in whole:  # what is missing the optimizer itself complains of
            state[key] = whole[source][piece]
    return state


def parsed(key: str) -> tuple[str, str, int, int]:
    """("m", "model.norm.weight", 0, 16) of `m.model.norm.weight[0:16]`."""
    kind, rest = key.split(".", 1)
    name, rows = rest.removesuffix("]").split("[")
    start, stop = map(int, rows.split(":"))
    return kind, name, start, stop


def name_of(key: str) -> str:
    """The published tensor that an entry of the state of a shard's optimizer belongs to."""
    return parsed(key)[1] if "[" in key else key.removeprefix("momentum.")
