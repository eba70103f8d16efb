"""What an exercise is: a forward to differentiate, the cases that try it, and the slips that are common.

@exercise("multiply", after=("add",), hint="..")
def multiply(a, b): ... return y, saved            # the forward, as the exercise's file will have it

@slip("softmax", "term", "the second term is missing: ..")
def _(g, x, *, axis): ... return (y * g,)          # what that mistake computes
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lab.cases import MAKERS, Maker
from tinygrad_ds import Tensor, primitives, using
from tinygrad_ds.dtypes import is_floating


@dataclass(frozen=True)
class Slip:
    """A common mistake: its class, what to say, and the gradients that it gives."""

    kind: str
    words: str
    gradients: Callable[..., tuple]


@dataclass(frozen=True)
class Exercise:
    """One step of the ladder. `function` works on Tensors, and its gradient is the truth."""

    name: str
    after: tuple[str, ...]
    hint: str
    forward: Callable
    function: Callable
    maker: Maker
    slips: list[Slip] = field(default_factory=list)

    def truth(self, arrays: tuple[np.ndarray, ...], options: dict, g: Any) -> tuple:
        """One gradient for each array, None for those that have none."""
        with using(kernels="reference"):
            inputs = [Tensor(a, requires_grad=is_floating(a.dtype)) for a in arrays]
            y = self.function(*inputs, **options)
            y.backward(g)
        constants = CONSTANTS.get(self.name, ())
        return tuple(
            None if i in constants or not x.requires_grad else np.zeros(x.shape) if x.grad is None else x.grad
            for i, x in enumerate(inputs)
        )

    def value(self, arrays: tuple[np.ndarray, ...], options: dict) -> np.ndarray:
        """What the forward must return."""
        with using(kernels="reference"):
            return self.function(*(Tensor(a) for a in arrays), **options).data


LADDER: dict[str, Exercise] = {}
CONSTANTS = {
    "rope": (1, 2),
    "clipped_objective": (1, 2),
    "k3": (1,),
    "jensen_shannon": (1,),
}  # floating arrays that get no gradient


def exercise(
    name: str,
    *,
    after: tuple[str, ...] = (),
    hint: str,
    function: Callable | None = None,
    maker: Maker | None = None,
) -> Callable[[Callable], Callable]:
    """Register the forward of an exercise; `function` is the primitive of that name if not given."""

    def register(forward: Callable) -> Callable:
        LADDER[name] = Exercise(
            name, after, hint, forward, function or primitives[name], maker or MAKERS[name]
        )
        return forward

    return register


def slip(name: str, kind: str, words: str) -> Callable[[Callable], Callable]:
    """Register a common mistake of an exercise. It takes g, then the exercise's arrays and options."""

    def register(gradients: Callable) -> Callable:
        LADDER[name].slips.append(Slip(kind, words, gradients))
        return gradients

    return register
