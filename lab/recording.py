"""An observer that writes down every call of a step: what, where, how large, how long, and the gradients."""

import math
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from layers.module import Module
from tinygrad_ds.device import Array, to_host
from tinygrad_ds.primitive import Primitive, primitives
from tinygrad_ds.tape import Node, Record, arrays_in


@dataclass
class Call:
    """A call of a primitive, forward and, once it has run, backward. Norms: None where nothing flowed."""

    number: int
    name: str
    fused: bool
    module: str  # path of the module that made the call, "" outside of any
    site: str  # file:line in layers/
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    saved_bytes: int
    forward: float  # seconds
    backward: float | None = None  # seconds
    arriving: float | None = None  # norm of the gradient of the outputs
    leaving: list[float | None] = field(default_factory=list)  # norm of that of each input
    sources: list[int] = field(default_factory=list)  # numbers of the calls whose results it used
    parameters: list[str] = field(default_factory=list)  # leaves that it used

    @property
    def family(self) -> str:
        """The file of the primitive, without `.py`."""
        return family_of(self.name)


def family_of(name: str) -> str:
    """The family of a primitive: the name of its file."""
    return primitives[name].forward.__module__.rpartition(".")[2]


def norm(array: Array) -> float:
    """The Euclidean norm, summed in float64."""
    values = to_host(array).ravel()
    return math.sqrt(float(np.dot(values, values.astype(np.float64))))


class Recorder:
    """Told of every call by `tg.observe(recorder)`; `calls` is the list afterwards.

    A record on the tape is found again by what its forward saved, which is one object for each call; where
    nothing was saved, the newest call of that primitive without a backward is taken.
    """

    def __init__(self, model: Module) -> None:
        self.calls: list[Call] = []
        self.paths = {id(module): path for path, module in modules(model)}
        self.leaves = {id(leaf): name for name, leaf in model.named_leaves()}
        self._saved: dict[int, tuple[Any, Call]] = {}
        self._orders: dict[int, int] = {}
        self._edges: list[tuple[Call, int]] = []

    def forward(self, pair: Any, arrays: list[Array], result: Any, saved: Any, seconds: float) -> None:
        """A forward ran."""
        outputs = result if isinstance(result, tuple) else (result,)
        module, site = self.where()
        made = Call(
            number=len(self.calls),
            name=pair.name,
            fused=not isinstance(pair, Primitive),
            module=module,
            site=site,
            inputs=[np.shape(array) for array in arrays],
            outputs=[np.shape(array) for array in outputs],
            saved_bytes=sum(array.nbytes for array in arrays_in(saved)),
            forward=seconds,
        )
        self.calls.append(made)
        if saved != ():
            self._saved[id(saved)] = saved, made

    def backward(self, record: Record, grads: list[Array], given: tuple, seconds: float) -> None:
        """A backward ran."""
        if id(record.saved) in self._saved:
            made = self._saved.pop(id(record.saved))[1]
        else:
            waiting = [c for c in self.calls if c.name == record.pair.name and c.backward is None]
            if not waiting:  # a call that the engine makes by itself, such as recompute
                return
            made = waiting[-1]
        self._orders[record.order] = made.number
        made.backward = seconds
        made.arriving = math.hypot(*(norm(g) for g in grads if g is not None))
        made.leaving = [None if g is None or to is None else norm(g) for g, to in zip(given, record.edges)]
        for to in record.edges:
            if to is None:
                continue
            if isinstance(to.target, Node):
                made.parameters.append(self.leaves.get(id(to.target), "input"))
            else:
                self._edges.append((made, to.target.order))

    def connect(self) -> None:
        """Fill in `sources`, once all backwards have run."""
        for made, order in self._edges:
            if order in self._orders:
                made.sources.append(self._orders[order])

    def where(self) -> tuple[str, str]:
        """The path of the innermost module that is running, and the line of layers/ that made the call."""
        module, site = "", ""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and not (module and site):
            name = frame.f_globals.get("__name__", "")
            if not site and name.startswith("layers."):
                site = f"{name.replace('.', '/')}.py:{frame.f_lineno}"
            if not module and name.startswith("layers."):
                module = self.paths.get(id(frame.f_locals.get("self")), "")
            frame = frame.f_back
        return module, site


def modules(module: Module, path: str = "") -> list[tuple[str, Module]]:
    """(path of attributes, module) of all modules below one, and "" for itself."""
    found = [(path, module)]
    for name, value in module.children():
        if isinstance(value, Module):
            found += modules(value, f"{path}.{name}" if path else name)
    return found
