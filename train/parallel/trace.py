"""What a rank did when, and what was on its way meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A stretch of work. Seconds of the clock, and those that the processor gave to this thread."""

    name: str
    began: float
    ended: float
    cpu: float


class Flight(NamedTuple):
    """Something on its way: when it was posted, and when it was first seen complete."""

    what: str
    posted: float
    seen: float
    nbytes: int


class Trace:
    """Of one rank. Nothing is kept unless `recording`. Seconds count from `restart`."""

    def __init__(self) -> None:
        self.recording = False
        self.sent = 0
        """Bytes that the rank has handed to MPI, ever."""
        self.restart()

    def restart(self) -> None:
        """Forget everything and count seconds from now."""
        self.origin = perf_counter()
        self.steps: list[Span] = []
        """Whole steps of the schedule."""
        self.components: list[Span] = []
        """Parts of them: attention, dispatch, experts, combine; forward or backward, never two at once."""
        self.flights: list[Flight] = []

    def clock(self) -> float:
        """Seconds since `restart`."""
        return perf_counter() - self.origin

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """The steps of the schedule; what is waited for inside takes time on the clock alone."""
        began, cpu = self.clock(), thread_time()
        yield
        if self.recording:
            self.steps.append(Span(name, began, self.clock(), thread_time() - cpu))

    def component(self, name: str, began: float, cpu: float) -> None:
        """A component that began at those readings of `clock` and `thread_time` and ends now."""
        if self.recording:
            self.components.append(Span(name, began, self.clock(), thread_time() - cpu))

    def landed(self, pending: Any) -> None:
        """Note a message or an exchange when it is first seen complete."""
        if self.recording:
            nbytes = sum({id(buffer): buffer.nbytes for buffer in pending.buffers}.values())
            self.flights.append(Flight(pending.what, pending.posted, pending.seen, nbytes))
