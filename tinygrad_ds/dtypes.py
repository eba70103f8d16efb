"""Number formats by name, float64 down to float8. The narrow ones, from ml_dtypes, serve as storage."""

from typing import Any

import ml_dtypes
import numpy as np

_NARROW = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
}
_NARROW_TYPES = frozenset(_NARROW.values())


def dtype(name: Any) -> np.dtype:
    """The NumPy dtype called `name`: "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64",
    ..

    Raises ValueError for a name that is no dtype.
    """
    if isinstance(name, str) and name in _NARROW:
        return _NARROW[name]
    try:
        return np.dtype(name)
    except TypeError as error:
        raise ValueError(
            f"dtype is {name!r}, which is no number format: try float32, float64 or bfloat16"
        ) from error


def is_floating(kind: np.dtype) -> bool:
    """Whether a gradient can have this dtype."""
    return kind.kind == "f" or kind in _NARROW_TYPES


def result_type(arrays: list[Any], scalars: list[Any]) -> np.dtype:
    """The dtype that NumPy's rules give for these arrays and scalars; a scalar never promotes a float."""
    if not arrays:
        return np.result_type(*scalars)
    of_arrays = np.result_type(*(array.dtype for array in arrays))
    if is_floating(of_arrays):  # NumPy does not know that the narrow formats are floats, so it is not asked
        return of_arrays
    return np.result_type(of_arrays, *scalars)
