"""Trade time for memory: run a function again in backward instead of keeping what it saves."""

from collections.abc import Callable, Iterator
from typing import Any

from tinygrad_ds import settings, tape, walk
from tinygrad_ds.tape import Node


class _Recomputed:
    """The pair on the tape for one recomputed call; backward runs the function anew, on a tape of its own."""

    weights: tuple[int, ...] = ()

    def __init__(self, function: Callable, wanted: list[bool | None]) -> None:
        self.name = f"recompute({getattr(function, '__name__', 'function')})"
        self.function = function
        self.wanted = wanted  # for every input whether it needs a gradient, None if it is no Tensor
        self.settings = settings.current()
        self.ran = self.settings.first_run or tape.next_order()

    def backward(self, saved: list, grad: Any) -> tuple:
        """Run the function with gradients and walk that tape. Parameters get their `.grad` on the way."""
        inputs = [
            value if wanted is None else Node.around(value, requires_grad=wanted)
            for value, wanted in zip(saved, self.wanted, strict=True)
        ]
        first, then = tape.next_order(), self.settings
        with settings.changed(recording=True, kernels=then.kernels, device=then.device, first_run=self.ran):
            results = self.function(*inputs)
        results, grads = (results, grad) if isinstance(results, tuple) else ((results,), (grad,))
        seeds = [
            (node, g) for node, g in zip(results, grads, strict=True) if g is not None and node.requires_grad
        ]
        if any(leaf.version.last >= self.ran for leaf in _leaves(seeds, first)):
            raise RuntimeError(
                f"{self.name}: a parameter that the function uses was written in place after it ran, so its "
                "gradient would be that of another function: call backward before the optimizer's step"
            )
        walk.backward(seeds, since=first)
        return tuple(
            None if wanted is None else x.grad for x, wanted in zip(inputs, self.wanted, strict=True)
        )


def _leaves(seeds: list[tuple[Node, Any]], since: int) -> Iterator[Node]:
    """The leaves that want gradients from the records made since number `since`."""
    waiting: list[Any] = [node.record or node for node, _ in seeds]
    seen: set[int] = set()
    while waiting:
        target = waiting.pop()
        if isinstance(target, Node):
            yield target
        elif target.order >= since and target.order not in seen:
            seen.add(target.order)
            waiting += [edge.target for edge in target.edges if edge is not None]


def recompute(function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)`, saving only the inputs: backward computes everything between once more.

    The function must give the same result each time, return a Tensor or a tuple of Tensors, and take every
    Tensor that other calls made as one of `inputs` (parameters it may use freely, as long as they are not
    written before backward); RuntimeError says so otherwise.
    """
    if not settings.current().recording:
        return function(*inputs)
    with settings.changed(recording=False):
        results = function(*inputs)
    nodes = [item if isinstance(item, Node) else None for item in inputs]
    several = isinstance(results, tuple)
    outputs = [Node.around(y.data, version=y.version) for y in (results if several else (results,))]
    saved = [item.data if isinstance(item, Node) else item for item in inputs]
    wanted = [None if node is None else node.requires_grad for node in nodes]
    tape.record(_Recomputed(function, wanted), saved, nodes, outputs, several)
    return tape.like(results, outputs)
