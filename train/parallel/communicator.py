"""The one object through which ranks talk. Every wait gives the core away, and no wait is for ever.

All calls are non-blocking: what is under way is a `Pending`, and `wait` asks after it again and again. A
blocking call of MPI would spin on a core that the awaited rank may need, and could not say what it waits for.
"""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from time import monotonic, sleep
from typing import Any

import numpy as np

from tinygrad_ds.device import Array, namespace
from train.errors import UserError
from train.parallel.roll_call import HERE, RollCall, named
from train.parallel.staging import incoming, landed, outgoing
from train.parallel.trace import Trace

YIELDS, NAP = 20, 1e-4  # times that the core is only offered to others; seconds between two looks after that
ATTENTION = 100  # naps after which a rank that waits looks whether others ask if it is there
LONG = 10.0  # how many times longer others may take over what is no part of a step


class Stalled(Exception):
    """A rank waited longer than it is willing to."""


class Pending:
    """A message or an exchange that is under way. `buffers` stay alive, and untouched, until it is complete.

    landing: pairs of what MPI writes and where that belongs (see staging.py). posted, seen: seconds of the
    clock when it began, and when it was first found complete.
    """

    def __init__(
        self, request: Any, what: str, buffers: Sequence[Any], trace: Trace, landing: Sequence[tuple]
    ) -> None:
        self.request, self.what, self.buffers, self.trace = request, what, buffers, trace
        self.landing = landing
        self.posted = trace.clock()
        self.seen: float | None = None

    def test(self) -> bool:
        """Whether it is complete. Asking is also what lets it go on: MPI works only inside its calls."""
        if self.seen is None and self.request.Test():
            for wire, array in self.landing:
                landed(wire, array)
            self.seen = self.trace.clock()
            self.trace.landed(self)
        return self.seen is not None


class Post:
    """What is under way from and to a rank; and its patience, seconds until it says what it waits for."""

    def __init__(self, mpi: Any) -> None:
        self.patience = 60.0
        self.roll = RollCall(mpi)
        self.flying: list[Pending] = []
        self.trace = Trace()


class Communicator:
    """Some of the ranks of a run, numbered from 0; `numbers` are theirs among all.

    post: what all communicators of a rank share.
    """

    def __init__(self, mpi: Any, numbers: Sequence[int] | None = None, post: Post | None = None) -> None:
        self.mpi, self.rank, self.size = mpi, mpi.Get_rank(), mpi.Get_size()
        self.numbers = list(range(self.size)) if numbers is None else list(numbers)
        self.post = post or Post(mpi)
        self.trace = self.post.trace
        self.parts: dict[tuple[int, ...], Communicator] = {}

    def part(self, ranks: Sequence[int]) -> "Communicator":
        """A communicator of some of these ranks, in this order. They all call this, and nobody else.

        What was asked for before is given again: communicators of MPI are few.
        """
        if (key := tuple(ranks)) not in self.parts:
            numbers = [self.numbers[r] for r in ranks]
            what = f"a communicator of {named(numbers)}"
            self.meet(numbers, what)
            with self.watched(f"{what}, which MPI does not make although they all came"):
                made = self.mpi.Create_group(self.mpi.Get_group().Incl(list(ranks)))
            self.parts[key] = Communicator(made, numbers, self.post)
        return self.parts[key]

    def begin(
        self, request: Any, what: str, *buffers: Any, landing: tuple[Any, Array] | None = None
    ) -> Pending:
        """Note what is under way, for whoever asks after it."""
        pending = Pending(request, what, buffers, self.trace, [landing] if landing else [])
        self.post.flying.append(pending)
        return pending

    def progress(self) -> None:
        """Ask after all that is under way, so that it goes on."""
        self.post.flying = [pending for pending in self.post.flying if not pending.test()]

    def meet(self, numbers: Sequence[int], what: str) -> None:
        """Return when all of these ranks, by their numbers among all, have called this. Raises Stalled."""
        missing = self.post.roll.begin(numbers, HERE)
        self.until(lambda: not missing(), what, lambda: f"{named(missing() or numbers)} did not come")

    def wait(self, pending: Pending) -> None:
        """Return when it is complete. Raises Stalled after `patience` seconds."""

        def who() -> str:
            silent = self.post.roll.silent(self.numbers)
            return f"{named(silent)} gave no answer" if silent else "all ranks wait for one another"

        self.until(pending.test, pending.what, who)
        self.post.flying = [other for other in self.post.flying if other is not pending]

    def until(self, done: Callable[[], bool], what: str, who: Callable[[], str]) -> None:
        """Return when it is `done`. After `patience` seconds raises Stalled with what is waited for, and who
        is at fault.
        """
        began, looks = monotonic(), 0
        while not done():
            looks += 1
            if looks <= YIELDS:
                os.sched_yield()
                continue
            sleep(NAP)
            if looks % ATTENTION == 0:
                self.post.roll.answer()
            if monotonic() - began > self.post.patience:
                waited = self.waited(what)
                raise Stalled(f"{waited}: {who()}; a rank is stuck, or --timeout is too short")

    def waited(self, what: str) -> str:
        """The beginning of the sentence of one who gives up."""
        return f"rank {self.numbers[self.rank]} has waited {self.post.patience:g} seconds for {what}"

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """For a call of MPI that blocks: after `patience` seconds a thread says so and ends the process."""

        def give_up() -> None:
            print(self.waited(what), file=sys.__stderr__, flush=True)
            os._exit(1)

        watchdog = Timer(self.post.patience, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """For what may take long and is no part of a step, such as reading text: ten times the patience."""
        usual, self.post.patience = self.post.patience, self.post.patience * LONG
        try:
            yield
        finally:
            self.post.patience = usual

    def send(self, array: Array, to: int, tag: int, what: str) -> Pending:
        """Begin to send. The array must stay as it is until that is complete."""
        array = namespace(array).ascontiguousarray(array)
        self.trace.sent += array.nbytes
        wire = outgoing(array)
        return self.begin(self.mpi.Isend(wire, to, tag), what, array, wire)

    def receive(self, into: Array, source: int, tag: int, what: str) -> Pending:
        """Begin to receive into a contiguous array."""
        wire = incoming(into)
        return self.begin(self.mpi.Irecv(wire, source, tag), what, into, landing=(wire, into))

    def add_up(self, array: Array, what: str) -> Array:
        """The sum over all ranks, the same bits everywhere."""
        array = namespace(array).ascontiguousarray(array)
        total = namespace(array).empty_like(array)
        self.trace.sent += array.nbytes
        wires = outgoing(array), incoming(total)
        request = self.mpi.Iallreduce(*wires)
        self.wait(self.begin(request, f"{what}, from {self}", array, *wires, landing=(wires[1], total)))
        return total

    def add_up_pieces(self, array: Array, counts: Sequence[int], what: str) -> Array:
        """The sum over all ranks of a flat array, of which rank r gets its `counts[r]` entries."""
        piece = namespace(array).empty(counts[self.rank], dtype=array.dtype)
        self.trace.sent += array.nbytes
        wires = outgoing(array), incoming(piece)
        request = self.mpi.Ireduce_scatter(*wires, list(counts))
        self.wait(self.begin(request, f"{what}, from {self}", array, *wires, landing=(wires[1], piece)))
        return piece

    def join_pieces(self, piece: Array, counts: Sequence[int], what: str) -> Array:
        """All ranks' flat pieces one behind the other; rank r has `counts[r]` entries."""
        whole = namespace(piece).empty(sum(counts), dtype=piece.dtype)
        self.trace.sent += piece.nbytes
        wires = outgoing(piece), incoming(whole)
        request = self.mpi.Iallgatherv(wires[0], [wires[1], list(counts)])
        self.wait(self.begin(request, f"{what}, from {self}", piece, *wires, landing=(wires[1], whole)))
        return whole

    def exchange(self, rows: Array, to: Sequence[int], of: Sequence[int], what: str) -> Pending:
        """Begin to send `to[r]` of the rows to rank r, in order, and to receive `of[r]` from it.

        The rows that come are `buffers[1]`, in the order of the ranks.
        """
        rows = namespace(rows).ascontiguousarray(rows)
        width = int(np.prod(rows.shape[1:]))
        into = namespace(rows).empty((sum(of), *rows.shape[1:]), dtype=rows.dtype)
        self.trace.sent += rows.nbytes
        wires = outgoing(rows), incoming(into)
        request = self.mpi.Ialltoallv(
            [wires[0], [n * width for n in to]], [wires[1], [n * width for n in of]]
        )
        return self.begin(request, f"{what} of {self}", rows, into, *wires, landing=(wires[1], into))

    def everybody(self, value: Any, what: str) -> list[Any]:
        """The values of all ranks, small objects, in the order of the ranks."""
        data = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        lengths = self.join_pieces(np.array([len(data)]), [1] * self.size, what)
        joined = self.join_pieces(data, lengths.tolist(), what)
        ends = np.cumsum(lengths)
        return [pickle.loads(joined[end - length : end].tobytes()) for end, length in zip(ends, lengths)]

    def from_first(self, value: Any, what: str) -> Any:
        """The value of rank 0, on every rank."""
        return self.everybody(value if self.rank == 0 else None, what)[0]

    def first_alone(self, work: Callable[[], Any], what: str) -> Any:
        """What `work` returns on rank 0, on every rank, or the UserError that it raises there."""
        value, error = None, None
        if self.rank == 0:
            try:
                value = work()
            except UserError as mistake:
                error = mistake
        with self.patient():
            value, error = self.from_first((value, error), what)
        if error is not None:
            raise error
        return value

    def in_turn(self, work: Callable[[], Any], what: str) -> Any:
        """What `work` returns, on every rank its own. Rank 0 goes ahead: the others find its files."""
        done: list[Any] = []
        self.first_alone(lambda: done.append(work()), what)
        return done[0] if done else work()

    def to_first(self, value: Any, what: str) -> list[Any]:
        """The values of all ranks on rank 0, where they may be large; an empty list elsewhere."""
        data = np.frombuffer(pickle.dumps(value, protocol=5), dtype=np.uint8)
        lengths = self.join_pieces(np.array([len(data)]), [1] * self.size, what).tolist()
        joined = np.empty(sum(lengths) if self.rank == 0 else 0, dtype=np.uint8)
        self.trace.sent += len(data)
        request = self.mpi.Igatherv(data, [joined, lengths], 0)
        self.wait(self.begin(request, f"{what}, from {self}", data, joined))
        if self.rank:
            return []
        ends = np.cumsum(lengths)
        return [pickle.loads(joined[end - length : end].data) for end, length in zip(ends, lengths)]

    def __str__(self) -> str:
        return named(self.numbers)
