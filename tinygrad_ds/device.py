"""NumPy or CuPy: which namespace an array belongs to, where new arrays go, and random numbers.

Products on a GPU are in full float32; `TINYGRAD_DS_TF32=1` lets them round their factors to TF32 (10 bits).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from tinygrad_ds import settings

Array = Any  # np.ndarray or cupy.ndarray; CuPy is optional, so there is no common class to name


class DeviceMissing(RuntimeError):
    """A device was asked for that cannot be used here; the message says what is missing."""


def namespace(array: Array) -> ModuleType:
    """The module, numpy or cupy, whose functions work on `array`."""
    return np if isinstance(array, np.ndarray) or device_of(array) == "cpu" else _cupy()


def device_of(value: Any) -> str:
    """Where `value` lives: "cuda" for an array of CuPy's, "cpu" for NumPy's, and for lists and numbers."""
    return "cuda" if type(value).__module__.partition(".")[0] == "cupy" else "cpu"


def here() -> ModuleType:
    """The namespace of the device that `tg.using(device=...)` chose."""
    return np if settings.current().device == "cpu" else _cupy()


@contextmanager
def chosen(device: str | None) -> Iterator[None]:
    """Compute on `device` in a `with` block (None: where the settings say). Raises DeviceMissing at once.

    Of several processes on one machine, as mpiexec starts them, each takes the GPU of its local rank.
    """
    with settings.using(device=device):
        if settings.current().device == "cuda":
            module = _cupy()
            count = module.cuda.runtime.getDeviceCount()
            with module.cuda.Device(local_rank() % count):
                yield
        else:
            yield


def local_rank() -> int:
    """Which of the processes on this machine this is, by what MPI or Slurm say; 0 where they say nothing."""
    names = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def place(array: Any, dtype: Any = None) -> Array:
    """`array` (any array, list or number) on the chosen device, without a copy where it is there already."""
    module = here()
    return module.asarray(to_host(array) if module is np else array, dtype=dtype)


def to_host(array: Array) -> np.ndarray:
    """`array` as a NumPy array, copied from the device if it is there."""
    return array.get() if device_of(array) == "cuda" else np.asarray(array)


def generator(seed: int | tuple[int, ...]) -> np.random.Generator:
    """Random numbers for `seed`, drawn on the host, so that a seed means the same on every device."""
    return np.random.default_rng(seed)


def owner(array: Array) -> Array:
    """The array that owns the memory which `array` looks into (itself, if it is no view)."""
    while isinstance(getattr(array, "base", None), type(array)):
        array = array.base
    return array


def number(module: ModuleType, value: float, dtype: Any) -> Array:
    """A Python number as a 0-d array; on a device it is written there, not copied."""
    return module.asarray(value, dtype=dtype) if module is np else module.full((), value, dtype=dtype)


@cache
def _cupy() -> ModuleType:
    """CuPy, once it is known that it can be used. Raises DeviceMissing."""
    if "TINYGRAD_DS_TF32" in os.environ:
        os.environ["CUPY_TF32"] = os.environ["TINYGRAD_DS_TF32"]  # read when it loads
    try:
        import cupy
    except ImportError as error:
        raise DeviceMissing(
            'device "cuda" needs the package CuPy: pip install "tinygrad_ds[cuda12]" or "tinygrad_ds[cuda13]"'
        ) from error
    try:
        count, reason = cupy.cuda.runtime.getDeviceCount(), "the driver sees none"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if not cupy.cuda.runtime.driverGetVersion():
            raise DeviceMissing(
                'device "cuda" needs the NVIDIA driver, and none is loaded: install it, or use device "cpu"'
            ) from error
        count, reason = 0, str(error)
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            reason += f"; CUDA_VISIBLE_DEVICES is {visible!r}"
        raise DeviceMissing(f'device "cuda" needs an NVIDIA GPU ({reason}): use device "cpu"')
    return cupy
