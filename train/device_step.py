"""The end of a step on a GPU: clip, decide, update, and read one small array.

    norm of the gradient, all finite?  ->  clip  ->  optimizer  ->  routers' biases  ->  one copy to the host

On a CPU the loop looks at norm and loss and then steps or stops. Here the decision stays on the device: a
step whose loss or gradient is not finite changes nothing there. The host queues all of it, then reads the
numbers of the step, the norm, the decision and the experts' loads at once.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from layers import DeepSeekModel
from tinygrad_ds.device import Array, device_of, namespace, to_host
from train.muon import Muon
from train.optimizer import AdamW, at_once, clip_grad_norm


class Outcome(NamedTuple):
    """What the host reads of a step. Where the numbers or the norm are not finite, nothing was changed."""

    numbers: dict[str, float]  # the loss and its parts
    norm: float  # of the gradient, before clipping
    loads: dict[str, np.ndarray]  # tokens of each expert, by layer


def clip_later(model: DeepSeekModel, max_norm: float) -> "float | Pending":
    """`clip_grad_norm`, or on a GPU what does it, and the rest of the step, without asking the host."""
    grads = [leaf.grad for leaf in model.parameters() if leaf.grad is not None]
    return clip_grad_norm(model, max_norm) if at_once(grads) is None else Pending(model, max_norm)


_tables: WeakKeyDictionary = WeakKeyDictionary()  # of each model's gradients


class Pending:
    """A step that is still to be clipped and taken."""

    def __init__(self, model: DeepSeekModel, max_norm: float) -> None:
        self.model, self.max_norm = model, max_norm

    def finish(self, optimizer: Any, numbers: Mapping[str, Any], speed: float) -> Outcome:
        """Clip, let the optimizer step, move the routers' biases by `speed`; read once.

        numbers: of the step, on the device or not; the loss among them.
        """
        kernels = importlib.import_module("tinygrad_ds.kernels.cuda.optimizer")
        grads = [leaf.grad for leaf in self.model.parameters() if leaf.grad is not None]
        xp = namespace(grads[0])
        there = {name: value for name, value in numbers.items() if device_of(value) == "cuda"}
        figures = xp.concatenate([xp.empty(0), *(value.astype("float64")[None] for value in there.values())])
        table = _tables.setdefault(self.model, kernels.Tables()).of([(grad, grad) for grad in grads])
        control = kernels.decide(table, self.max_norm, figures)
        if masks(optimizer):
            if not isinstance(optimizer, AdamW):  # which clips in passing
                kernels.clip(table, control)
            optimizer.step(control)
        elif to_host(control)[2]:
            kernels.clip(table, control)
            optimizer.step()
        norm, taken, found, loads = self._read(control, figures, speed)
        if not taken and masks(optimizer):
            adamw = optimizer if isinstance(optimizer, AdamW) else optimizer.rest
            adamw.steps -= 1
        return Outcome({**numbers, **dict(zip(there, found))}, norm, loads)

    def _read(self, control: Array, figures: Array, speed: float) -> tuple:
        """The one copy, of float64: norm, decision, figures, loads; and the biases, which need the loads."""
        moes, xp = self.model.moe_layers(), namespace(control)
        loads = [moe.load.astype("float64") for moe in moes.values()]
        everything = xp.concatenate([control[::2], figures, *loads])
        self.model.update_router_bias(speed * control[2])
        norm, taken, *host = to_host(everything).tolist()
        found, host = host[: figures.size], host[figures.size :]
        named = {}
        for name, moe in moes.items():
            named[name], host = np.array(host[: len(moe.load)], dtype=int), host[len(moe.load) :]
        return norm, taken == 1, found, named


def masks(optimizer: Any) -> bool:
    """Whether the optimizer can take or leave a step on the device: AdamW and Muon."""
    if not isinstance(optimizer, AdamW | Muon):
        return False
    adamw = optimizer if isinstance(optimizer, AdamW) else optimizer.rest
    leaves = [leaf.data for leaf in adamw.leaves.values()]
    return at_once(leaves, [moment for pair in adamw.moments.values() for moment in pair]) is not None
