"""Two micro-batches in turns on one rank: DualPipe's F&B, in one thread.

Passes are cut into components: attention, dispatch, experts, combine. Where one begins, the forward pass
calls `border`, which leaves a mark on the tape; the walk back stops at the same marks. While two passes are
interleaved, each stop of the forward pass lets the backward pass of the other micro-batch do one component,
and asks after all that is on its way: MPI only works inside its calls.
"""

from collections.abc import Iterator, Sequence
from time import thread_time
from typing import Any

from tinygrad_ds import Tensor, settings, tape, walk
from tinygrad_ds.deferred import DeferredWeightGradients
from tinygrad_ds.device import Array
from tinygrad_ds.tape import Node
from train.parallel.communicator import Communicator, Pending


class Border:
    """The pair on the tape where a component begins: the array goes through, and so does its gradient."""

    weights: tuple[int, ...] = ()

    def __init__(self, component: str) -> None:
        self.name = self.component = component
        self.pending: Pending | None = None

    def backward(self, saved: None, grad: Array) -> tuple[Array]:
        """Nothing was done."""
        return (grad,)


class Exchange(Border):
    """A border at which rows change ranks; the component that begins needs those that come.

    outgoing, incoming: how many rows go to, and come from, each rank.
    """

    def __init__(
        self, component: str, ranks: Communicator, outgoing: Sequence[int], incoming: Sequence[int]
    ) -> None:
        super().__init__(component)
        self.ranks, self.outgoing, self.incoming = ranks, outgoing, incoming

    def forward(self, rows: Array) -> Pending:
        """Begin to send."""
        return self.ranks.exchange(rows, self.outgoing, self.incoming, f"the rows of {self.component}")

    def backward(self, saved: None, grad: Array) -> tuple[Array]:
        """A row's gradient goes back to where the row came from. It is there once `pending` is complete."""
        what = f"the gradients of the rows of {self.component}"
        self.pending = self.ranks.exchange(grad, self.incoming, self.outgoing, what)
        return (self.pending.buffers[1],)


class Interleaver:
    """Runs passes, alone or two at a time, and tells the trace of their components."""

    def __init__(self, ranks: Communicator) -> None:
        self.ranks, self.trace = ranks, ranks.trace
        self.other: Iterator[None] | None = None
        """The backward pass that goes on when the forward pass stops."""
        self.label = ""
        """The forward step that is being done, such as 2F4."""
        self.begin("")

    def begin(self, component: str) -> None:
        """A component of the forward pass begins now."""
        self.component, self.began, self.cpu = component, self.trace.clock(), thread_time()

    def stop(self, component: str) -> None:
        """One component of the forward pass ends here and `component` begins, after one of the other pass."""
        if self.component:
            self.trace.component(f"{self.label} {self.component}", self.began, self.cpu)
        self.ranks.progress()
        if self.other is not None:
            next(self.other, None)
        self.begin(component)

    def border(self, x: Tensor, component: str) -> Tensor:
        """x, from which on it is `component`."""
        self.stop(component)
        return self.record(Border(component), x, x.data, x.version)

    def exchange(self, rows: Tensor, exchange: Exchange) -> Tensor:
        """The rows that come for those that go, with the other pass's work in between."""
        pending = exchange.forward(rows.data)
        self.stop(exchange.component)
        self.ranks.wait(pending)
        return self.record(exchange, rows, pending.buffers[1])

    def record(self, pair: Border, x: Tensor, data: Array, version: Any = None) -> Tensor:
        """`data` as a Tensor whose gradient goes back through `pair` to x."""
        y: Tensor = Node.around(data, version=version)
        if x.requires_grad and settings.current().recording:
            tape.record(pair, None, [x], [y], False)
        return y

    def backward(
        self, label: str, seeds: list[tuple[Tensor, Array]], later: DeferredWeightGradients | None
    ) -> Iterator[None]:
        """A backward pass that stops after each component. `later` takes the weight halves, if it is one."""
        records = walk.steps([*seeds])
        while True:
            began, cpu, component, reached = self.trace.clock(), thread_time(), "", None
            with settings.changed(deferred=later):
                for record in records:
                    component = "embedding"  # unless there is a border still to come
                    if isinstance(record.pair, Border):
                        reached, component = record.pair, record.pair.component
                        break
            if component:
                self.trace.component(f"{label} {component}", began, cpu)
            if reached is None:
                return
            self.ranks.progress()
            yield
            if reached.pending is not None:
                self.ranks.wait(reached.pending)
                reached.pending = None
