"""The tape: nodes, records of calls, and the walk back through them.

A `Node` is an array with a place for its gradient. A call of a primitive that needs gradients leaves a
`Record`: the pair of functions that ran, what the forward saved, and the nodes that went in. `backward` walks
the records from the last to the first. Nothing here knows any primitive.

In-place writes: every node has a version that its views share. A record notes the versions of its outputs and
of those inputs that it saved; a walk that finds another version says which primitive would have computed a
wrong gradient.
"""

import heapq
import itertools
import weakref
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from tinygrad_ds import settings
from tinygrad_ds.device import Array, namespace, owner, to_host
from tinygrad_ds.dtypes import is_floating


class Pair(Protocol):
    """A forward and its backward, reference or fused; the halves exist where `weights` names arguments."""

    name: str
    weights: tuple[int, ...]
    backward: Any
    backward_input: Any
    backward_weight: Any


class Version:
    """How often the memory behind a node was written in place; shared by all its views."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Node:
    """An array on the tape. `record` made it as output number `output`; a leaf has no record."""

    __slots__ = ("__weakref__", "data", "grad", "output", "record", "requires_grad", "version")
    public: type["Node"]  # the class that users see; results of primitives are made with it

    def __init__(self, data: Array, requires_grad: bool = False, version: Version | None = None) -> None:
        self.data = data
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.record: Record | None = None
        self.output = 0
        self.version = version or Version()

    def written(self) -> None:
        """Say that this node's memory was changed in place."""
        self.version.count += 1

    def retain_grad(self) -> None:
        """Keep the gradient of this node in `.grad` although a primitive made it."""
        if self.record is not None:
            self.record.retained[self.output] = weakref.ref(self)


class Guard(NamedTuple):
    """A version that must still be what it was when backward runs."""

    version: Version
    count: int
    what: str


_order = itertools.count()


class Record:
    """One call on the tape."""

    __slots__ = ("checksums", "guards", "inputs", "order", "outputs", "pair", "retained", "saved", "used")

    def __init__(self, pair: Pair, saved: Any, inputs: list[Node | None], outputs: list[Node]) -> None:
        self.pair = pair
        self.saved = saved
        self.inputs = inputs
        self.outputs = len(outputs)
        self.order = next(_order)
        self.used = False
        self.retained: dict[int, weakref.ref] = {}
        saved_memory = {id(owner(array)) for array in arrays_in(saved)}
        self.guards = [Guard(node.version, node.version.count, "its result") for node in outputs]
        self.guards += [
            Guard(node.version, node.version.count, f"its input {position}")
            for position, node in enumerate(inputs)
            if node is not None and id(owner(node.data)) in saved_memory
        ]
        watched = settings.current().detect_anomaly
        self.checksums = [checksum(array) for array in arrays_in(saved)] if watched else None

    def saved_bytes(self) -> int:
        """Bytes that this record keeps alive for backward, views counted by what they show."""
        return sum(array.nbytes for array in arrays_in(self.saved))

    def check(self) -> None:
        """Raise RuntimeError if what backward needs is gone or was changed since forward."""
        if self.used:
            raise RuntimeError(
                f"backward has already run through {self.pair.name!r} and freed what it saved: "
                "call the function again, or pass keep_saved=True to the first backward"
            )
        self.check_versions()
        if self.checksums is not None:
            for place, (before, array) in enumerate(zip(self.checksums, arrays_in(self.saved), strict=True)):
                if checksum(array) != before:
                    raise RuntimeError(
                        f"array {place} of shape {array.shape} saved by {self.pair.name!r} was changed "
                        "behind the tape's back (through .data?) between forward and backward"
                    )

    def check_versions(self) -> None:
        """Raise RuntimeError if anything that backward needs was written through a Tensor since forward."""
        for guard in self.guards:
            if guard.version.count != guard.count:
                raise RuntimeError(
                    f"{guard.what} was written in place after {self.pair.name!r} was recorded, so its "
                    "gradient would be wrong: write before the call, or to a copy"
                )

    def free(self) -> None:
        """Let go of what was saved."""
        self.saved = None
        self.used = True


def arrays_in(saved: Any) -> Iterator[Array]:
    """All arrays in what a forward saved, in order, looking into tuples, lists and dicts."""
    if isinstance(saved, tuple | list):
        for item in saved:
            yield from arrays_in(item)
    elif isinstance(saved, dict):
        yield from arrays_in(list(saved.values()))
    elif hasattr(saved, "nbytes") and hasattr(saved, "strides"):
        yield saved


def checksum(array: Array) -> int:
    """A checksum of an array's content."""
    return zlib.crc32(np.ascontiguousarray(to_host(array)).view(np.uint8).data) if array.size else 0


def record(pair: Pair, saved: Any, inputs: list[Node | None], outputs: list[Node]) -> None:
    """Put one call on the tape: outputs of a floating dtype then carry gradients back to `inputs`."""
    entry = Record(pair, saved, inputs, outputs)
    for index, node in enumerate(outputs):
        if is_floating(node.data.dtype):
            node.requires_grad, node.record, node.output = True, entry, index


class _Arrived(NamedTuple):
    """A gradient on its way. `ours`: the walk made the array, so that it may be added to in place."""

    array: Array
    ours: bool


def backward(seeds: list[tuple[Node, Array]], *, keep_saved: bool = False, since: int = -1) -> None:
    """Carry gradients from `seeds` back to the leaves, adding to their `.grad`.

    Records run from the last to the first, so every record has all its gradients when its turn comes. Records
    made before number `since` are out of bounds (see `recompute`).
    """
    arrived: dict[int, tuple[Record, list[_Arrived | None]]] = {}
    waiting: list[int] = []

    def give(node: Node, grad: Array, made_here: bool) -> None:
        if node.record is None:
            accumulate(node, grad, made_here)
            return
        entry = node.record
        if entry.order not in arrived:
            if entry.order < since:
                raise RuntimeError(
                    f"recompute: the function uses the result of {entry.pair.name!r} from outside: "
                    "pass it as one of the inputs"
                )
            arrived[entry.order] = entry, [None] * entry.outputs
            heapq.heappush(waiting, -entry.order)
        grads = arrived[entry.order][1]
        grads[node.output] = _add(grads[node.output], grad)

    for node, grad in seeds:
        give(node, grad, False)
    while waiting:
        entry, incoming = arrived.pop(-heapq.heappop(waiting))
        entry.check()
        grads = [None if item is None else item.array for item in incoming]
        for index, reference in entry.retained.items():
            if (node := reference()) is not None and grads[index] is not None:
                accumulate(node, grads[index], False)
        given = _run(entry, grads[0] if entry.outputs == 1 else tuple(grads))
        held = [*grads, *arrays_in(entry.saved)]
        if not keep_saved:
            entry.free()
        for position, (node, grad) in enumerate(zip(entry.inputs, given, strict=True)):
            if node is None or grad is None or not node.requires_grad:
                continue
            grad = checked(entry, position, node, grad)
            shared = any(grad is other for other in held) or sum(grad is other for other in given) > 1
            give(node, grad, made_here=not shared)


def _run(entry: Record, grad: Any) -> tuple:
    """The gradients of one record's inputs; the weights' half goes to the queue where one is open."""
    queue = settings.current().deferred
    pair = entry.pair
    if queue is not None and _has_deferrable_weight(entry):
        queue.add(entry, grad)
        given = pair.backward_input(entry.saved, grad)
    else:
        given = pair.backward(entry.saved, grad)
    if len(given) != len(entry.inputs):
        raise RuntimeError(
            f"{pair.name!r} has {len(entry.inputs)} inputs but its backward gave {len(given)} gradients"
        )
    return given


def _has_deferrable_weight(entry: Record) -> bool:
    """Whether a weight's gradient can wait: all weights of the call are leaves, so nothing else needs it."""
    weights = [entry.inputs[place] for place in entry.pair.weights if place < len(entry.inputs)]
    given = [node for node in weights if node is not None]
    return all(node.record is None for node in given) and any(node.requires_grad for node in given)


def checked(entry: Record, position: int, node: Node, grad: Array) -> Array:
    """The gradient as an array of the node's shape and dtype, or an error that says what is wrong with it."""
    grad = namespace(node.data).asarray(grad)
    if grad.shape != node.data.shape or grad.dtype != node.data.dtype:
        raise RuntimeError(
            f"the backward of {entry.pair.name!r} gave a gradient {grad.dtype}{grad.shape} "
            f"for input {position}, which is {node.data.dtype}{node.data.shape}"
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
    return _Arrived(before.array + grad, True)


def accumulate(node: Node, grad: Array, made_here: bool) -> None:
    """Add to a leaf's `.grad`, which the leaf owns alone: optimizers scale it in place."""
    if not node.requires_grad:
        return
    if node.grad is not None:
        node.grad = node.grad + grad
    elif made_here and grad.base is None:
        node.grad = grad
    else:
        node.grad = grad.copy()


def next_order() -> int:
    """The number that the next record will have."""
    return next(_order) + 1
