"""The tape: nodes, and records of calls. Nothing here knows any primitive.

A `Node` is an array with a place for its gradient. A call of a primitive that needs gradients leaves a
`Record`: the pair of functions that ran, what the forward saved, and an `Edge` to every input. walk.py goes
back through them.

In-place writes: every node has a version that its views share. A record notes the versions of its outputs and
of those inputs that it saved; a walk that finds another version says which primitive would have computed a
wrong gradient.
"""

import itertools
import weakref
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds import settings
from tinygrad_ds.device import Array, owner, to_host
from tinygrad_ds.dtypes import is_floating


class Version:
    """When the memory behind a node was last written in place, in one order with the records (0: never).

    All its views share it.
    """

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


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

    @classmethod
    def around(cls, data: Array, requires_grad: bool = False, version: Version | None = None) -> Any:
        """A node of the users' class around an array, which stays on the device where it is."""
        node = Node.public.__new__(Node.public)
        Node.__init__(node, data, requires_grad, version)
        return node

    def written(self) -> None:
        """Say that this node's memory was changed in place."""
        self.version.last = next(_order)

    def retain_grad(self) -> None:
        """Keep the gradient of this node in `.grad` although a primitive made it."""
        if self.record is not None:
            self.record.retained[self.output] = weakref.ref(self)


class Edge(NamedTuple):
    """Where the gradient of an input goes: into a leaf, or on to output number `output` of a record.

    The node of an input that a record made is not kept, for that would keep its array.
    """

    target: "Node | Record"
    output: int
    shape: tuple[int, ...]
    dtype: np.dtype


def edge(node: Node | None) -> Edge | None:
    """The edge to a node, None where no gradient is wanted."""
    if node is None or not node.requires_grad:
        return None
    return Edge(node.record or node, node.output, node.data.shape, node.data.dtype)


class Guard(NamedTuple):
    """A version that must still be what it was when backward runs."""

    version: Version
    expected: int
    what: str


_order = itertools.count(1)  # of records and of writes in place


class Record:
    """One call on the tape.

    pair: what ran (a Primitive or its Twin), with its name, weights, backward and, where it has weights, the
    halves of backward. several: its result is a tuple, of however many outputs.
    """

    def __init__(
        self, pair: Any, saved: Any, inputs: list[Node | None], outputs: list[Node], several: bool
    ) -> None:
        self.pair = pair
        self.saved = saved
        self.edges: list[Edge | None] = [edge(node) for node in inputs]
        self.outputs = len(outputs)
        self.several = several
        self.order = next(_order)
        self.used = False
        self.retained: dict[int, weakref.ref] = {}
        saved_memory = {id(owner(array)) for array in arrays_in(saved)}
        self.guards = [Guard(node.version, node.version.last, "its result") for node in outputs]
        self.guards += [
            Guard(node.version, node.version.last, f"its input {position}")
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
            if guard.version.last != guard.expected:
                raise RuntimeError(
                    f"{guard.what} was written in place after {self.pair.name!r} was recorded, so its "
                    "gradient would be wrong: write before the call, or to a copy"
                )

    def free(self) -> None:
        """Let go of what was saved, and of the records before this one."""
        self.saved, self.edges, self.used = None, [], True


def arrays_in(saved: Any) -> Iterator[Array]:
    """All arrays in what a forward saved, in order, looking into tuples, lists and dicts."""
    if hasattr(saved, "strides"):
        yield saved
    elif isinstance(saved, tuple | list | dict):
        for item in saved.values() if isinstance(saved, dict) else saved:
            if not isinstance(item, int):  # most of what is no array, and hasattr is slow to say no
                yield from arrays_in(item)


def checksum(array: Array) -> int:
    """A checksum of an array's content."""
    return zlib.crc32(np.ascontiguousarray(to_host(array)).view(np.uint8).data) if array.size else 0


def record(pair: Any, saved: Any, inputs: list[Node | None], outputs: list[Node], several: bool) -> None:
    """Put one call on the tape: outputs of a floating dtype then carry gradients back to `inputs`."""
    entry = Record(pair, saved, inputs, outputs, several)
    for index, node in enumerate(outputs):
        if is_floating(node.data.dtype):
            node.requires_grad, node.record, node.output = True, entry, index


def like(result: Any, outputs: list[Node]) -> Any:
    """The outputs alone, as a tuple or as a named tuple, whichever the forward's `result` is."""
    if not isinstance(result, tuple):
        return outputs[0]
    return getattr(result, "_make", tuple)(outputs)


def next_order() -> int:
    """The number that the next record will have."""
    return next(_order) + 1
