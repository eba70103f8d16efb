"""What must be set before NumPy, BLAS and OpenMP load: waiting threads and the memory allocator.

Both settings are about time lost around the arithmetic, not in it (docs/performance.md has the measurements).
"""

import ctypes
import os
import sys

_LINUX_MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_MMAP_THRESHOLD": -3}
_KEEP_BYTES = 2**31 - 1


def quiet_idle_threads() -> None:
    """Let idle workers sleep, so that BLAS threads and numba threads do not fight for the cores.

    A value that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


def keep_large_blocks() -> None:
    """Tell glibc to keep freed blocks of any size, so that large arrays do not cost fresh page faults."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl and others have no mallopt, and lose only speed
        return
    for parameter in _LINUX_MALLOPT.values():
        mallopt(parameter, _KEEP_BYTES)


def set_threads(count: int) -> None:
    """Use `count` threads in BLAS and in numba alike."""
    from threadpoolctl import threadpool_limits

    if count < 1:
        raise ValueError(f"threads is {count} but at least 1 is needed")
    threadpool_limits(count)
    import numba

    limit = numba.config.NUMBA_NUM_THREADS
    if count > limit:
        raise ValueError(
            f"threads is {count} but numba was started for {limit}: set NUMBA_NUM_THREADS={count}"
        )
    numba.set_num_threads(count)


quiet_idle_threads()
keep_large_blocks()
