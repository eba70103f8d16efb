"""To the device and back, and what is equal there."""

from typing import Any

import cupy
import numpy as np

from tests.tinygrad_ds.test_registry import same_arrays
from tinygrad_ds.device import to_host


def on_device(value: Any) -> Any:
    """NumPy arrays in `value`, also inside tuples and lists, as CuPy arrays."""
    if isinstance(value, np.ndarray | np.floating):  # NumPy makes numbers of some 0-d results
        return cupy.asarray(value)
    if isinstance(value, tuple | list):
        items = [on_device(item) for item in value]
        return getattr(value, "_make", type(value))(items)
    return value


def same_on_device(given: Any, expected: Any, tolerance: float) -> None:
    """CuPy arrays (None where there is none) equal NumPy arrays in number, shape, dtype and entries."""
    for array in given:
        assert array is None or isinstance(array, cupy.ndarray)
    same_arrays([None if a is None else to_host(a) for a in given], expected, tolerance)
