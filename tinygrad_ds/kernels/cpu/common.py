"""How CPU kernels are compiled and called.

A kernel is a function with one loop `for part in prange(PARTS)`, each part working on its own share of the
rows. The shares depend on the shape alone, never on the number of threads, and so do all sums: results are
the same to the bit on one thread and on many. Small calls run the same loop on one thread, without waking
others.

    @kernel("(T[:, ::1], T[:, ::1])")
    def _double(x, y): ...

compiles for float32 and float64 (T) when first called with one, keeps the machine code on disk, and says so
through `progress.listener`. Literals in a kernel are cast to T: a bare `2.0` would make it float64.
"""

import inspect
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import event

from tinygrad_ds.kernels import progress

PARTS = 16

# A kernel uses all threads if its first array has so many entries: waking a thread takes some 50 us. The
# second number is for kernels that do hardly more than read, a tenth of a nanosecond an entry.
PARALLEL_FROM, LIGHT_PARALLEL_FROM = 1 << 16, 1 << 20

_KINDS = ({np.dtype(np.float32)}, {np.dtype(np.float64)})

# What the compiler may do: add in any order, round a*b + c once. It may not assume away NaN and infinities.
FASTMATH = {"reassoc", "contract"}

# Numba's fallback for threads (workqueue) aborts when two threads start parallel kernels at once. A parallel
# kernel keeps all cores busy, so others lose nothing by waiting their turn, whichever layer there is.
_one_at_a_time = threading.Lock()


class Kernel:
    """A function compiled on its first call, for each dtype, and for one thread or many."""

    def __init__(self, function: FunctionType, signature: str, parallel_from: int) -> None:
        self.function = function
        self.signature = signature
        self.parallel_from = parallel_from
        self._serial: dict[np.dtype, Callable] = {}
        self._parallel: dict[np.dtype, Callable] = {}

    def __call__(self, *args: Any) -> None:
        if args[0].size < self.parallel_from:
            self.alone(*args)
            return
        dtype = args[0].dtype
        with _one_at_a_time:
            (self._parallel.get(dtype) or self._compile(dtype, True))(*args)

    def alone(self, *args: Any) -> None:
        """On the calling thread, whatever the size: for those who keep the other threads busy themselves."""
        dtype = args[0].dtype
        (self._serial.get(dtype) or self._compile(dtype, False))(*args)

    def _compile(self, dtype: np.dtype, parallel: bool) -> Callable:
        """The machine code for one dtype, from disk or made now.

        On disk numba tells forms apart by the function's name and keeps them until the function's own file
        changes. So each form gets a name of its own, which also stands for the files of what it calls.
        """
        name = f"{self.function.__name__}_{'parallel' if parallel else 'serial'}_{_version(self.function)}"
        form = FunctionType(self.function.__code__, self.function.__globals__, name)
        form.__qualname__, form.__module__ = name, self.function.__module__
        make = numba.njit(
            f"void{self.signature.replace('T', dtype.name)}",
            cache=True,
            nogil=True,
            parallel=parallel,
            error_model="numpy",
            fastmath=FASTMATH,
        )
        with event.install_listener("numba:compile", _Announcement(self.function.__name__, dtype.name)):
            compiled = make(form)
        (self._parallel if parallel else self._serial)[dtype] = compiled
        return compiled


def _version(function: FunctionType) -> str:
    """A checksum of the files in this folder that `function` uses something from."""
    modules = {getattr(value, "__module__", None) or "" for value in function.__globals__.values()}
    files = [inspect.getfile(sys.modules[name]) for name in sorted(modules) if name.startswith(__package__)]
    return f"{zlib.crc32(b''.join(Path(file).read_bytes() for file in files)):08x}"


class _Announcement(event.Listener):
    """Tells `progress.listener`, once, that a kernel is being compiled."""

    def __init__(self, name: str, dtype: str) -> None:
        self.text = f"compiling {name.strip('_')} ({dtype}) ..."

    def on_start(self, event: Any) -> None:
        if self.text and progress.listener is not None:
            progress.listener(self.text)
        self.text = ""  # what it calls is compiled with it

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


def kernel(signature: str, parallel_from: int = PARALLEL_FROM) -> Callable[[Any], Kernel]:
    """Make a kernel of a function; `signature` lists the types of its arguments, T for the dtype."""
    return lambda function: Kernel(function, signature, parallel_from)


@numba.njit
def share(part, count):
    """The first of `count` rows that is `part`'s. Its last one comes before share(part + 1, count)."""
    return part * count // PARTS


@numba.njit
def share_of_entries(part, count):
    """The same for single entries. The cuts are at multiples of 64, so that few are left over by vectors."""
    return min(share(part, (count + 63) // 64) * 64, count)


# For functions that are compiled into kernels and never called from Python: half the time to compile.
inner = numba.njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def covered(*arrays: np.ndarray) -> bool:
    """Whether there are kernels for these arrays: all float32, or all float64."""
    return {array.dtype for array in arrays} in _KINDS
