"""Weight gradients that wait. Pipelines need the gradient of a layer's input at once and that of its weights
any time.

with tg.defer_weight_gradients() as later:
    loss.backward()          # only what other ranks wait for
later.run()                  # the rest, in the order in which it was put off
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinygrad_ds import settings
from tinygrad_ds.tape import Edge, Node, Record, arrays_in
from tinygrad_ds.walk import accumulate, checked, once


class DeferredWeightGradients:
    """A queue of weight gradients, first in, first out. Every entry keeps alive what it needs."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Record, Any, list[Edge | None], Any]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: Record, grad: Any) -> None:
        """Put off the weight half of one record; `grad` is what reached its result."""
        self._waiting.append((record, record.saved, record.edges, grad))

    def run(self, count: int | None = None) -> None:
        """Compute the first `count` waiting gradients (by default all); add them to the weights' `.grad`."""
        count = len(self._waiting) if count is None else count
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        for record, saved, edges, grad in now:
            record.check_versions()
            given = record.pair.backward_weight(saved, grad)
            held = [grad, *arrays_in(saved), *given]
            for position, (to, g) in enumerate(zip(edges, given, strict=True)):
                if to is not None and g is not None and isinstance(to.target, Node):
                    accumulate(to.target, checked(record, position, to, g), once(g, held))


@contextmanager
def defer_weight_gradients() -> Iterator[DeferredWeightGradients]:
    """Within the block, backward puts the weight half of products with parameters into the yielded queue."""
    queue = DeferredWeightGradients()
    with settings.changed(deferred=queue):
        yield queue
