"""Module: what has parameters. They are found by attribute, and seen under their published names.

A leaf is a Tensor that the tape fills with a gradient and the optimizer writes. Some leaves hold several
published tensors, because one large product is faster than many small ones: all experts stacked, the gate
with the up projection. `Part` says which piece of which leaf a name means, and `View` is that piece as a
Tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, here, namespace


class Part(NamedTuple):
    """One published tensor: `leaf.data[index]`, or the whole leaf where index is None."""

    name: str
    leaf: Tensor
    index: Any = None

    @property
    def data(self) -> Array:
        """The entries, in the leaf's memory."""
        return self.leaf.data if self.index is None else self.leaf.data[self.index]

    def tensor(self) -> Tensor:
        """The published tensor, sharing memory with its leaf."""
        return self.leaf if self.index is None else View(self.leaf, self.index)


class View(Tensor):
    """A piece of a leaf. `.data` and `.grad` are at any time views of what the leaf then has."""

    __slots__ = ("index", "leaf")

    def __init__(self, leaf: Tensor, index: Any) -> None:
        self.leaf, self.index = leaf, index
        self.record, self.output, self.version = None, 0, leaf.version

    @property
    def data(self) -> Array:
        """The entries, in the leaf's memory."""
        return self.leaf.data[self.index]

    @data.setter
    def data(self, values: Array) -> None:
        self.leaf.data[self.index] = values

    @property
    def grad(self) -> Array | None:
        """The piece of the leaf's gradient, None while the leaf has none."""
        return None if self.leaf.grad is None else self.leaf.grad[self.index]

    @grad.setter
    def grad(self, values: Array | None) -> None:
        if self.leaf.grad is None:
            if values is None:
                return
            self.leaf.grad = namespace(self.leaf.data).zeros_like(self.leaf.data)
        self.leaf.grad[self.index] = 0 if values is None else values

    @property
    def requires_grad(self) -> bool:
        """Whether the leaf takes part in training."""
        return self.leaf.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.leaf.requires_grad = wanted


_hollow: ContextVar[bool] = ContextVar("hollow", default=False)


@contextmanager
def hollow() -> Iterator[None]:
    """Parameters made inside have a shape and a dtype but no memory, until `Module.allocate`."""
    token = _hollow.set(True)
    try:
        yield
    finally:
        _hollow.reset(token)


def parameter(shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """A leaf whose entries are still to be written, by `DeepSeekModel.initialize` or from a checkpoint."""
    return Tensor(_without_memory(shape, dtype) if _hollow.get() else here().empty(shape, dtype=dtype), True)


def _without_memory(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array of this shape all of whose entries are one and the same."""
    return here().broadcast_to(here().empty((), dtype=dtype), shape)


class Module:
    """Something with parameters (attributes that are Tensors) and sub-modules (attributes or in lists)."""

    def children(self) -> Iterator[tuple[str, "Tensor | Module"]]:
        """(attribute, Tensor or Module), in the order of their making; the items of a list as `layers.0`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def named_leaves(self, path: str = "") -> Iterator[tuple[str, Tensor]]:
        """(path of attributes, leaf) for everything that is trained."""
        for name, value in self.children():
            if isinstance(value, Module):
                yield from value.named_leaves(f"{path}{name}.")
            elif value.requires_grad:
                yield path + name, value

    def parameters(self) -> Iterator[Tensor]:
        """The leaves, as the optimizer steps them."""
        return (leaf for _, leaf in self.named_leaves())

    def published(self, path: str = "") -> Iterator[Part]:
        """Every tensor of a checkpoint, buffers included. Modules that merge some have their own version."""
        for name, value in self.children():
            if isinstance(value, Module):
                yield from value.published(f"{path}{name}.")
            else:
                yield Part(path + name, value)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(published name, Tensor) for everything that is trained; merged ones come one by one, as views."""
        return ((part.name, part.tensor()) for part in self.published() if part.leaf.requires_grad)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(published name, Tensor) for what belongs to a checkpoint but has no gradient."""
        return ((part.name, part.tensor()) for part in self.published() if not part.leaf.requires_grad)

    def allocate(self) -> None:
        """Give each hollow parameter memory of its own, whose entries are still to be written."""
        for leaf in self.parameters():
            if not any(leaf.data.strides):
                leaf.data = here().empty(leaf.shape, dtype=leaf.dtype)

    def release(self) -> None:
        """Make all parameters hollow: their entries are lost."""
        for leaf in self.parameters():
            leaf.data = _without_memory(leaf.shape, leaf.dtype)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for leaf in self.parameters():
            leaf.grad = None
