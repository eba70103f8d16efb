"""The walk back through the tape: from the last record to the first, gradients in, gradients out.

Every record has all its gradients when its turn comes, for what used its outputs was recorded after it.
"""

import heapq
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

from tinygrad_ds import settings
from tinygrad_ds.device import Array, namespace
from tinygrad_ds.tape import Edge, Node, Record, arrays_in, edge


class _Arrived(NamedTuple):
    """A gradient on its way. `ours`: the walk made the array, so that it may be added to in place."""

    array: Array
    ours: bool


def backward(seeds: list[tuple[Node, Array]], *, keep_saved: bool = False, since: int = -1) -> None:
    """Carry gradients from `seeds` back to the leaves, adding to their `.grad`. See `steps`."""
    for _ in steps(seeds, keep_saved=keep_saved, since=since):
        pass


def steps(seeds: list[tuple[Node, Array]], *, keep_saved: bool = False, since: int = -1) -> Iterator[Record]:
    """`backward` record by record, so that something else can be done in between; yields what has just run.

    Records run from the last to the first, so every record has all its gradients when its turn comes. Records
    made before number `since` are out of bounds (see `recompute`). The gradients that a record gave are read
    only when the walk goes on.
    """
    arrived: dict[int, tuple[Record, list[_Arrived | None]]] = {}
    waiting: list[int] = []

    def give(to: Edge, grad: Array, made_here: bool) -> None:
        if isinstance(to.target, Node):
            accumulate(to.target, grad, made_here)
            return
        entry = to.target
        if entry.order not in arrived:
            if entry.order < since:
                raise RuntimeError(
                    f"recompute: the function uses the result of {entry.pair.name!r} from outside: "
                    "pass it as one of the inputs"
                )
            arrived[entry.order] = entry, [None] * entry.outputs
            heapq.heappush(waiting, -entry.order)
        grads = arrived[entry.order][1]
        grads[to.output] = _add(grads[to.output], grad)

    for node, grad in seeds:
        if (start := edge(node)) is not None:
            # A queued weight half may wait while the caller puts other numbers into the same array.
            give(start, grad if settings.current().deferred is None else grad.copy(), False)
    while waiting:
        entry, incoming = arrived.pop(-heapq.heappop(waiting))
        entry.check()
        grads = [None if item is None else item.array for item in incoming]
        for index, reference in entry.retained.items():
            if (kept := reference()) is not None and grads[index] is not None:
                accumulate(kept, grads[index], False)
        observer = settings.current().observer
        began = perf_counter() if observer else 0.0
        given = _run(entry, tuple(grads) if entry.several else grads[0])
        if observer:
            observer.backward(entry, grads, given, perf_counter() - began)
        yield entry
        held = [*grads, *arrays_in(entry.saved), *given]
        edges = entry.edges
        if not keep_saved:
            entry.free()
        for position, (to, grad) in enumerate(zip(edges, given, strict=True)):
            if to is not None and grad is not None:
                give(to, checked(entry, position, to, grad), made_here=once(grad, held))


def _run(entry: Record, grad: Any) -> tuple:
    """The gradients of one record's inputs; the weights' half goes to the queue where one is open."""
    queue = settings.current().deferred
    pair = entry.pair
    if queue is not None and _has_deferrable_weight(entry):
        queue.add(entry, grad)
        given = pair.backward_input(entry.saved, grad)
    else:
        given = pair.backward(entry.saved, grad)
    if len(given) != len(entry.edges):
        raise RuntimeError(
            f"{pair.name!r} has {len(entry.edges)} inputs but its backward gave {len(given)} gradients"
        )
    return given


def once(grad: Array, held: list[Any]) -> bool:
    """Whether `grad` is one gradient only, and neither what was saved nor what came in."""
    return sum(grad is other for other in held) == 1


def _has_deferrable_weight(entry: Record) -> bool:
    """Whether a weight's gradient can wait: all weights of the call are leaves, so nothing else needs it."""
    weights = [entry.edges[place] for place in entry.pair.weights if place < len(entry.edges)]
    wanted = [to.target for to in weights if to is not None]
    return bool(wanted) and all(isinstance(target, Node) for target in wanted)


def checked(entry: Record, position: int, to: Edge, grad: Array) -> Array:
    """The gradient as an array of its input's shape and dtype, or an error that says what is wrong."""
    grad = namespace(grad).asarray(grad)
    if grad.shape != to.shape or grad.dtype != to.dtype:
        raise RuntimeError(
            f"the backward of {entry.pair.name!r} gave a gradient {grad.dtype}{grad.shape} "
            f"for input {position}, which is {to.dtype}{to.shape}"
        )
    if entry.checksums is not None and not namespace(grad).isfinite(grad).all():
        raise RuntimeError(
            f"the backward of {entry.pair.name!r} gave a gradient that is not finite for input {position}"
        )
    return grad


def _add(before: _Arrived | None, grad: Array) -> _Arrived:
    """The sum of two gradients. The first may be shared, so only our own sum is added to in place."""
    if before is None:
        return _Arrived(grad, False)
    if before.ours:
        before.array[...] += grad
        return before
    return _Arrived(_sum(before.array, grad), True)


def _sum(a: Array, b: Array) -> Array:
    """A new array a + b, where NumPy would make a scalar of two 0-d arrays."""
    return namespace(a).asarray(a + b)


def accumulate(node: Node, grad: Array, made_here: bool) -> None:
    """Add to a leaf's `.grad`, which the leaf owns alone: optimizers scale it in place."""
    if not node.requires_grad:
        return
    if node.grad is not None:
        node.grad = _sum(node.grad, grad)
    elif made_here and grad.base is None:
        node.grad = grad
    else:
        node.grad = grad.copy()
