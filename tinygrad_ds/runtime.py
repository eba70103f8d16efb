"""What must be set before NumPy, BLAS and OpenMP load: waiting threads and the memory allocator.

Both settings are about time lost around the arithmetic, not in it (docs/performance.md has the measurements).
"""

import ctypes
import os
import sys
import threading

_LINUX_MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_MMAP_THRESHOLD": -3}
_KEEP_BYTES = 2**31 - 1


def quiet_idle_threads() -> None:
    """Let idle workers sleep, so that BLAS threads and numba threads do not fight for the cores.

    A value that the user has set stays. Where NumPy was imported first, its BLAS is told anew.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "OPENBLAS_THREAD_TIMEOUT" not in os.environ:
        os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"
        others_may_compute = threading.active_count() > 1 and "ipykernel" not in sys.modules
        if "numpy" in sys.modules and not others_may_compute:
            restart_openblas()


def restart_openblas() -> None:
    """Let OpenBLAS read its environment again, which it does only as it loads, and start its threads anew.

    Its waiting threads would otherwise turn for 20 ms after each product, on cores that others need: a
    training step takes 1.5 times as long. It restarts its threads in this way after every fork. A build
    without these functions stays as it is. No other thread may be in a product meanwhile.
    """
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        handle = ctypes.CDLL(library.filepath)
        names = ("openblas_read_env", "blas_thread_shutdown_", "blas_thread_init")
        if all(hasattr(handle, name) for name in names):
            for name in names:
                handle[name]()


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
