"""Arrays of a GPU on their way through MPI: handed over as they are, or by a copy in pinned host memory.

An MPI built for CUDA reads and writes device memory itself; `TINYGRAD_DS_MPI_CUDA=1` says that this one is.
Any other is given host memory that the driver copies from and to quickly. NumPy's arrays pass as they are.
"""

import os
from typing import Any

import numpy as np

from tinygrad_ds.device import Array, device_of, namespace


def takes_device_arrays() -> bool:
    """Whether this MPI may be given arrays of a GPU."""
    return os.environ.get("TINYGRAD_DS_MPI_CUDA", "0") not in ("", "0")


def outgoing(array: Array) -> Array:
    """What MPI reads in the place of a contiguous `array`, whose numbers are there when this returns."""
    if device_of(array) == "cpu":
        return array
    module = namespace(array)
    if takes_device_arrays():
        module.cuda.get_current_stream().synchronize()  # MPI knows nothing of streams
        return array
    return array.get(out=_pinned(array))


def incoming(array: Array) -> Array:
    """What MPI writes in the place of a contiguous `array`; `landed` moves it there."""
    if device_of(array) == "cpu":
        return array
    if takes_device_arrays():
        namespace(array).cuda.get_current_stream().synchronize()
        return array
    return _pinned(array)


def landed(wire: Any, array: Array) -> None:
    """Copy what came into `wire` to where it belongs, if that is elsewhere."""
    if wire is not array:
        array.set(wire)


def _pinned(array: Array) -> np.ndarray:
    """Host memory of an array's shape and dtype that stays in its place."""
    memory = namespace(array).cuda.alloc_pinned_memory(max(array.nbytes, 1))
    return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
