"""Compiling and launching: a .cu file for a number format, once a process, and a kernel of it on arrays.

NVRTC compiles at the first launch; CuPy keeps the result on disk (CUPY_CACHE_DIR). Kernels take long long for
every whole number and double for every other, which is what CuPy makes of Python's, so no launch casts.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

FOLDER = Path(__file__).parent
REAL = {"float32": "float", "float64": "double"}
NARROW = {"bfloat16": "float"}  # stored so, and computed in this
OPTIONS = ("--std=c++17",)
WARP = 32


def source(file: str, dtype: str, constants: tuple[tuple[str, int], ...] = ()) -> str:
    """The text that is compiled: the format, constants of this build, what all share, the file.

    One text and no #include, because CuPy's cache knows a kernel by its text.
    """
    head = ["#define BFLOAT16"] if dtype in NARROW else []
    head.append(f"typedef {(REAL | NARROW)[dtype]} real;")
    head += [f"const int {name} = {value};" for name, value in constants]
    files = (FOLDER / "common.cuh", FOLDER / file)
    return "\n".join([*head, *(path.read_text("utf-8") for path in files)])


@cache
def module(file: str, dtype: str, constants: tuple[tuple[str, int], ...] = ()) -> cupy.RawModule:
    """The compiled file."""
    return cupy.RawModule(code=source(file, dtype, constants), options=OPTIONS)


def launch(
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    *arguments: Any,
    dtype: Any,
    constants: tuple[tuple[str, int], ...] = (),
    shared: int = 0,
) -> None:
    """Run kernel "file.name" on a grid of blocks, unless there is nothing to do.

    arguments: arrays by their first entry, None as a null pointer, whole numbers and real ones.
    """
    if min(grid) == 0:
        return
    file, name = kernel.split(".")
    function = module(f"{file}.cu", str(dtype), constants).get_function(name)
    if shared > function.max_dynamic_shared_size_bytes:
        function.max_dynamic_shared_size_bytes = shared
    given = tuple(0 if value is None else value for value in arguments)
    function(tuple(grid), tuple(block), given, shared_mem=shared)


def blocks(work: int, size: int) -> int:
    """How many blocks of `size` cover `work`."""
    return -(-work // size)


def covered(*arrays: Any, narrow: bool = False) -> bool:
    """Whether kernels take these: all float32, all float64 or, where `narrow`, all bfloat16; none empty."""
    kind = arrays[0].dtype
    known = kind.name in REAL or (narrow and kind.name in NARROW)
    return known and all(array.dtype == kind and array.size for array in arrays)


def real_of(array: cupy.ndarray) -> Any:
    """The dtype in which kernels add and keep statistics of such an array."""
    return np.dtype(np.float32) if array.dtype.name in NARROW else array.dtype


def contiguous(array: cupy.ndarray) -> cupy.ndarray:
    """`array`, copied if its entries do not lie one behind the other."""
    return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)


def as_rows(array: cupy.ndarray) -> cupy.ndarray:
    """The vectors of the last axis as the rows of a contiguous matrix: (..., d) -> (rows, d)."""
    return contiguous(array).reshape(-1, array.shape[-1])


def in_pieces(array: cupy.ndarray) -> cupy.ndarray:
    """`array`, copied if the vectors of its last axis are not in one piece each."""
    return array if array.strides[-1] == array.itemsize or array.shape[-1] == 1 else contiguous(array)


def steps(array: cupy.ndarray, axes: int) -> tuple[int, ...]:
    """Entries from one to the next along each leading axis, new ones put in front until there are `axes`."""
    leading = [
        0 if size == 1 else step // array.itemsize for size, step in zip(array.shape[:-1], array.strides[:-1])
    ]
    return (*(0 for _ in range(axes - len(leading))), *leading)
