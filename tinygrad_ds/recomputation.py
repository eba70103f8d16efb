"""Trade time for memory: run a function again in backward instead of keeping what it saves."""

from collections.abc import Callable
from typing import Any

from tinygrad_ds import settings, tape
from tinygrad_ds.tape import Node


class _Recomputed:
    """The pair on the tape for one recomputed call; backward runs the function anew, on a tape of its own."""

    weights = ()

    def __init__(self, function: Callable, inputs: tuple) -> None:
        self.name = f"recompute({getattr(function, '__name__', 'function')})"
        self.function = function
        self.inputs = inputs

    def backward(self, saved: list, grad: Any) -> tuple:
        """Run the function with gradients and walk that tape. Parameters get their `.grad` on the way."""
        leaves = [
            Node.public(item.data, requires_grad=item.requires_grad) if isinstance(item, Node) else item
            for item in self.inputs
        ]
        first = tape.next_order()
        with settings.changed(recording=True):
            results = self.function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        grads = grad if len(results) > 1 else (grad,)
        seeds = [
            (node, g) for node, g in zip(results, grads, strict=True) if g is not None and node.requires_grad
        ]
        tape.backward(seeds, since=first)
        return tuple(leaf.grad if isinstance(leaf, Node) else None for leaf in leaves)


def recompute(function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)`, saving only the inputs: backward computes everything between once more.

    The function must give the same result each time, return a Tensor or a tuple of Tensors, and take every
    Tensor that other calls made as one of `inputs` (parameters it may use freely); RuntimeError says so
    otherwise.
    """
    if not settings.current().recording:
        return function(*inputs)
    with settings.changed(recording=False):
        results = function(*inputs)
    nodes = [item if isinstance(item, Node) else None for item in inputs]
    outputs = [
        Node.public(node.data, version=node.version)
        for node in (results if isinstance(results, tuple) else (results,))
    ]
    saved = [node.data for node in nodes if node is not None]
    tape.record(_Recomputed(function, inputs), saved, nodes, outputs)
    if not isinstance(results, tuple):
        return outputs[0]
    return type(results)(*outputs) if hasattr(results, "_fields") else tuple(outputs)
