"""Ranks begin and end together. mpi4py is imported here and nowhere else."""

import faulthandler
import io
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from time import monotonic, sleep
from typing import NoReturn

from train.errors import UserError
from train.parallel.communicator import LONG, Communicator, Stalled
from train.parallel.roll_call import BYE, LISTEN, named

# What launchers tell their processes: MPICH and Intel MPI, Open MPI, Slurm with PMIx.
MARKS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK")
START = 600.0  # seconds in which all ranks have begun; where one does not, MPI never says so to the others
GRACE = 4.0  # seconds in which ranks that found the same mistake find each other


def under_mpiexec() -> bool:
    """Whether a launcher of MPI started this process."""
    return any(mark in os.environ for mark in MARKS)


@cache
def world() -> Communicator:
    """All ranks: those that mpiexec started, or this process alone. UserError where mpi4py is missing."""
    try:
        import mpi4py
    except ImportError as error:
        raise UserError(
            "mpi4py is not installed, but ranks talk through it: pip install 'tinygrad-ds[mpi]', or mpi4py "
            "alone where you have an MPI of your own"
        ) from error
    mpi4py.rc.thread_level = "funneled"  # kernels have threads, but only the main one calls MPI
    faulthandler.dump_traceback_later(START, exit=True)  # while MPI begins no other thread of Python runs
    from mpi4py import MPI

    faulthandler.cancel_dump_traceback_later()
    return Communicator(MPI.COMM_WORLD)


def together(work: Callable[[], int]) -> int:
    """Run `work`, which returns an exit code, as one of several ranks: however one ends, all end.

    Only rank 0 is heard. A mistake that all ranks found is told once, and they leave with its exit code. What
    one rank alone met, an error that nobody foresaw above all, is told by it, and ends the others.
    """
    ranks, errors, said = world(), sys.stderr, io.StringIO()
    if ranks.rank:
        sys.stdout, sys.stderr = open(os.devnull, "w"), said
    try:
        code = work()
    except SystemExit as leave:  # of the parser of arguments, which has said why
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except Stalled as stalled:
        print(stalled, file=errors, flush=True)
        end = monotonic() + 2 * LISTEN  # so that all that wait have said for what
        while monotonic() < end:
            ranks.post.roll.answer()
            sleep(0.01)
        end_all(ranks, 1)
    except BaseException:
        print(f"rank {ranks.rank} of {ranks.size} failed:\n{traceback.format_exc()}", file=errors, flush=True)
        end_all(ranks, 1)
    missing, began = ranks.post.roll.begin(ranks.numbers, BYE), monotonic()
    limit = GRACE if code else ranks.post.patience * LONG
    while absent := missing():
        ranks.post.roll.answer()
        if monotonic() - began > limit:
            late = f"{named(absent)} did not come to an end within {limit:.0f} seconds"
            why = said.getvalue().strip() or late
            print(f"rank {ranks.rank} of {ranks.size}: {why}", file=errors, flush=True)
            end_all(ranks, code or 1)
        sleep(0.01)
    return code


def end_all(ranks: Communicator, code: int) -> NoReturn:
    """End all ranks, this one included, with this exit code."""
    sleep(0.2)  # a launcher that ends ranks at once would not hand on what this one has said
    ranks.mpi.Abort(code)
    os._exit(code)  # some Aborts return, and the launcher ends this process a moment later
