"""Who is there: before ranks do together what cannot be given up, each hears from all others; and a rank that
has waited too long asks the others, of which those that wait themselves answer.

Tokens of one byte go over the communicator of all ranks, with tags that no message has.
"""

from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any

HERE, ASK, ANSWER, BYE = 32001, 32002, 32003, 32004  # MPI has tags to 32767 at least
LISTEN = 1.0  # seconds in which whoever waits has answered: it looks at least ten times in them


class RollCall:
    """Of one rank; `mpi` has all of them."""

    def __init__(self, mpi: Any) -> None:
        self.mpi = mpi
        self.tokens: list[tuple[Any, bytearray]] = []  # on their way, with what they are sent from

    def send(self, to: int, tag: int) -> None:
        """Send a token, which nobody waits to have arrived."""
        token = bytearray(1)
        self.tokens = [(request, each) for request, each in self.tokens if not request.Test()]
        self.tokens.append((self.mpi.Isend(token, to, tag), token))

    def begin(self, ranks: Sequence[int], tag: int) -> Callable[[], list[int]]:
        """Tell these ranks that one is there; a function that says which of them have not said so yet."""
        others = [rank for rank in ranks if rank != self.mpi.Get_rank()]
        for rank in others:
            self.send(rank, tag)
        missing = {rank: self.mpi.Irecv(bytearray(1), rank, tag) for rank in others}

        def look() -> list[int]:
            for rank in [rank for rank, request in missing.items() if request.Test()]:
                del missing[rank]
            return list(missing)

        return look

    def answer(self) -> None:
        """Answer those that have asked. Whoever waits does this ten times a second or more."""
        for rank in range(self.mpi.Get_size()):
            if self.mpi.Iprobe(rank, ASK):
                self.mpi.Recv(bytearray(1), rank, ASK)
                self.send(rank, ANSWER)

    def silent(self, ranks: Sequence[int]) -> list[int]:
        """Those of these ranks that do not answer: they are at work, stuck in it, or gone."""
        others = [rank for rank in ranks if rank != self.mpi.Get_rank()]
        for rank in others:
            self.send(rank, ASK)
        answers = {rank: self.mpi.Irecv(bytearray(1), rank, ANSWER) for rank in others}
        end = monotonic() + LISTEN
        while answers and monotonic() < end:
            self.answer()
            for rank in [rank for rank, request in answers.items() if request.Test()]:
                del answers[rank]
            sleep(LISTEN / 100)
        return list(answers)


def named(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 1, 3`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
