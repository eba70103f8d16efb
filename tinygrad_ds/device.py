"""NumPy or CuPy: which namespace an array belongs to, where new arrays go, and random numbers."""

from types import ModuleType
from typing import Any

import numpy as np

from tinygrad_ds import settings

Array = Any  # np.ndarray or cupy.ndarray; CuPy is optional, so there is no common class to name


def namespace(array: Array) -> ModuleType:
    """The module, numpy or cupy, whose functions work on `array`."""
    return np if isinstance(array, np.ndarray) or device_of(array) == "cpu" else _cupy()


def device_of(value: Any) -> str:
    """Where `value` lives: "cuda" for an array of CuPy's, "cpu" for NumPy's, and for lists and numbers."""
    return "cuda" if type(value).__module__.partition(".")[0] == "cupy" else "cpu"


def here() -> ModuleType:
    """The namespace of the device that `tg.using(device=...)` chose."""
    return np if settings.current().device == "cpu" else _cupy()


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


def _cupy() -> ModuleType:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            'device "cuda" needs the package CuPy: pip install "tinygrad_ds[cuda12]" or "tinygrad_ds[cuda13]"'
        ) from error
    return cupy
