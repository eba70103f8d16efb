"""Long-lived processes that try mutants one after another; one that hangs is replaced.

They are spawned, not forked, and know before they import anything whether kernels are to be plain Python.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from tests.mutation.targets import KERNELS, Mutant

START = 300.0  # seconds for a process to import everything, and to see what the code does unchanged


def processor_seconds(pid: int | None) -> float:
    """What a process has used of the processor so far; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Outcome(NamedTuple):
    """What became of a mutant: "killed", "survived", "timeout" or "untried"; by what; processor seconds."""

    mutant: Mutant
    verdict: str
    by: str
    seconds: float


def serve(pipe: Connection, plain_kernels: bool) -> None:
    """The process: mutants come in, outcomes go out."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["TINYGRAD_DS_KERNELS"] = "reference"
    if plain_kernels:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        from tests.mutation import standins

        standins.install()
    from tests.mutation.trial import Laboratory, Stale

    laboratory = Laboratory()
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        mutant, cases_only = asked
        try:
            laboratory.prepare(mutant, cases_only)
            pipe.send(("prepared", ""))
            pipe.send(laboratory.by_cases(mutant) if cases_only else laboratory.by_tests(mutant))
        except Stale as stale:
            pipe.send(("stale", str(stale)))


class Worker:
    """One process and what it is doing."""

    def __init__(self, plain_kernels: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.plain_kernels = plain_kernels
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, plain_kernels), daemon=True)
        self.process.start()
        theirs.close()
        self.mutant: Mutant | None = None
        if not self.pipe.poll(START) or self.pipe.recv() != "ready":
            raise RuntimeError("a worker did not start: run one mutant with --workers 1 to see why")

    def give(self, mutant: Mutant, cases_only: bool) -> None:
        """Start on a mutant."""
        self.mutant, self.preparing = mutant, True
        self.begin()
        self.pipe.send((mutant, cases_only))

    def begin(self) -> None:
        """Start the clock."""
        self.began, self.used = monotonic(), processor_seconds(self.process.pid)

    def seconds(self) -> float:
        """What the mutant has used of the processor so far."""
        return max(processor_seconds(self.process.pid) - self.used, 0.0)

    def over(self, limit: float) -> bool:
        """Whether it has had its time: of the processor, which others may need too, or ten times that."""
        limit = max(limit, START) if self.preparing else limit
        return self.seconds() > limit or monotonic() - self.began > 10 * limit

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run(mutants: list[Mutant], workers: int, limit: float) -> Iterator[Outcome]:
    """Try all mutants on so many processes, `limit` seconds of each at most; outcomes as they come.

    What the cases leave alive waits for the tests until all have met the cases, which take milliseconds.
    """
    for plain in (False, True):
        of_a_kind = [each for each in mutants if each.target.file.startswith(KERNELS) == plain]
        yield from run_kind([(mutant, True) for mutant in of_a_kind], workers, limit, plain)


def run_kind(
    mutants: list[tuple[Mutant, bool]], workers: int, limit: float, plain: bool
) -> Iterator[Outcome]:
    """The same for mutants of one kind, each with whether it meets the cases only."""
    waiting = deque(mutants)
    busy = [Worker(plain) for _ in range(min(workers, len(waiting)))]
    for worker in busy:
        worker.give(*waiting.popleft())
    while busy:
        ready = wait([worker.pipe for worker in busy], timeout=1.0)
        for place, worker in reversed(list(enumerate(busy))):
            assert worker.mutant is not None
            seconds = worker.seconds()
            if worker.pipe in ready:
                try:
                    verdict, by = worker.pipe.recv()
                except (EOFError, OSError):
                    verdict, by = "killed", "the process crashed"
                    if worker.preparing:
                        verdict, by = "untried", "the process crashed on cases or tests unchanged"
                    busy[place] = renewed(worker)
                if verdict == "stale":
                    raise RuntimeError(by)
                if verdict == "prepared":
                    worker.preparing = False
                    worker.begin()
                    continue
            elif worker.over(limit):
                verdict, by = "timeout", f"more than {limit:.0f} s"
                if worker.preparing:
                    verdict, by = "untried", f"cases or tests unchanged take more than {START:.0f} s"
                busy[place] = renewed(worker)
            else:
                continue
            if verdict == "alive":
                waiting.append((worker.mutant, False))
            else:
                yield Outcome(worker.mutant, verdict, by, seconds)
            if waiting:
                busy[place].give(*waiting.popleft())
            else:
                busy.pop(place).stop()


def renewed(worker: Worker) -> Worker:
    """A fresh process in the place of one that hangs or is gone."""
    worker.stop()
    return Worker(worker.plain_kernels)
