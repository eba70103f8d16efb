"""Two threads inside one call of a kernel, for work of many short steps that each need the one before.

Starting a thread takes some 50 microseconds and decoding a token some 40 steps of a few. So the helper is
woken once and then stays: it watches for the next call for a millisecond before it sleeps again.
A step is cut into PIECES, whose cut depends on sizes alone. Whoever is free claims a piece, its own first,
since the weights of that are in its processor's cache; nobody waits for a helper that has claimed nothing,
and results are the same to the bit whether it came or not.

The board is where threads meet: numbers that are read and written as wholes, each on a cache line of its own.
`claim of piece p` is the number of the last step whose piece p was taken, DONE counts finished pieces.
"""

import os
import platform
import threading
from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_ds.kernels.cpu.common import inner

PIECES = 2
SPACING = 16  # words: two cache lines, as processors fetch them in pairs
DONE, BEGUN, POSTED, ASLEEP, STEP = (SPACING * (PIECES + i) for i in range(5))
WORDS = SPACING * (PIECES + 5)

PATIENCE = 40_000  # pauses that a helper waits for the next call: a millisecond
YIELD_AFTER = 2_000  # pauses after which a waiting thread lets others run

# LLVM's names for the instruction that says so, with their arguments; elsewhere a loop just turns.
_X86: tuple[str, list[int]] = ("llvm.x86.sse2.pause", [])
_ARM = ("llvm.aarch64.hint", [1])
_PAUSES = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}
_CAN_YIELD = hasattr(os, "sched_yield")
_sched_yield = types.ExternalFunction("sched_yield", types.intc())


def _place(context, builder, kind, args):
    board = context.make_array(kind)(context, builder, args[0])
    return builder.gep(board.data, [args[1]])


@intrinsic
def read(typing, board, place):
    """The number at a place, as it is now; what was written before it is seen too."""

    def code(context, builder, signature, args):
        pointer = _place(context, builder, board, args)
        return builder.load_atomic(pointer, "seq_cst", align=8)

    return types.int64(board, types.int64), code


@intrinsic
def write(typing, board, place, value):
    """Put a number at a place, behind all that was written before."""

    def code(context, builder, signature, args):
        builder.store_atomic(args[2], _place(context, builder, board, args), "seq_cst", align=8)
        return context.get_dummy_value()

    return types.void(board, types.int64, types.int64), code


@intrinsic
def _increase(typing, board, place):
    def code(context, builder, signature, args):
        pointer = _place(context, builder, board, args)
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "seq_cst")

    return types.int64(board, types.int64), code


@intrinsic
def _exchange(typing, board, place, expected, value):
    """Whether the number was the one expected, and is the value now."""

    def code(context, builder, signature, args):
        pointer = _place(context, builder, board, args)
        answer = builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(answer, 1)

    return types.boolean(board, types.int64, types.int64, types.int64), code


@intrinsic
def _pause(typing):
    """A moment's rest, which tells the processor that a loop only waits."""

    def code(context, builder, signature, args):
        if platform.machine() in _PAUSES:
            name, numbers = _PAUSES[platform.machine()]
            word = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [word] * len(numbers))
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(function, [word(number) for number in numbers])
        return context.get_dummy_value()

    return types.void(), code


@inner
def claim(board, step, piece):
    """Whether this thread is the one to do a piece of a step."""
    return _exchange(board, piece * SPACING, step - 1, step)


@inner
def finish(board):
    """Say that a claimed piece is done."""
    _increase(board, DONE)


@inner
def wait(board, step):
    """Until all pieces of a step are done."""
    pauses = 0
    while read(board, DONE) < step * PIECES:
        _pause()
        pauses += 1
        if _CAN_YIELD and pauses > YIELD_AFTER:
            _sched_yield()


@inner
def post(board, shared, call):
    """Let a call begin: helpers see it once it stands whole in `shared`."""
    write(board, BEGUN, read(board, BEGUN) + 1)
    shared[0] = call[0]
    write(board, POSTED, read(board, BEGUN))


@inner
def next_call(board, shared, call, last):
    """Copy the next call after number `last` and return its number; `last` if none comes for some time."""
    for _ in range(PATIENCE):
        posted = read(board, POSTED)
        if posted != last:
            call[0] = shared[0]
            if _exchange(board, BEGUN, posted, posted):  # else another was being written meanwhile
                return posted
        _pause()
    write(board, ASLEEP, 1)
    return last


@inner
def cut(piece, count):
    """The first of `count` things that is of a piece. Its last one comes before cut(piece + 1, count)."""
    return piece * count // PIECES


class Team:
    """A board, and the thread that helps. `serve(board, record's address)` runs until no call comes."""

    def __init__(self, record: np.dtype, serve: Callable[[np.ndarray, int], None]) -> None:
        self.record, self.serve = record, serve
        self._busy = threading.Lock()
        self._wake = threading.Semaphore(0)
        self._helper: threading.Thread | None = None
        self.board, self.shared = self.alone()

    def alone(self) -> tuple[np.ndarray, int]:
        """A board, and the address of the shared record in it, for a call without a helper."""
        board = np.zeros(WORDS + (self.record.itemsize + 7) // 8, np.int64)
        board[ASLEEP] = 1
        return board, board[WORDS:].ctypes.data

    def run(self, work: Callable[[np.ndarray, int], None]) -> None:
        """work(board, shared), with the helper's help unless there is one thread only, or it is busy."""
        if not self._busy.acquire(blocking=False):
            work(*self.alone())
            return
        try:
            if self.board[ASLEEP] and numba.get_num_threads() > 1:
                self._call_helper()
            work(self.board, self.shared)
        finally:
            self._busy.release()

    def _call_helper(self) -> None:
        if self._helper is None or not self._helper.is_alive():  # none lives on in a forked process
            self.board, self.shared = self.alone()
            self._helper = threading.Thread(target=self._help, name="decoding", daemon=True)
            self._helper.start()
        self.board[ASLEEP] = 0
        self._wake.release()

    def _help(self) -> None:
        while True:
            self._wake.acquire()
            self.serve(self.board, self.shared)
