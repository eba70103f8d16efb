"""How kernels read arrays of any layout.

A kernel takes contiguous arrays alone, for the compiler makes vector instructions of nothing else. An array
of another layout is copied first (`contiguous`, `as_rows`), or read where it lies if the copy would cost:
half of a merged product, the heads of a transposed one and a repeated key still have their last axis in one
piece, and `spread` says where in memory each of those rows starts.
"""

from typing import NamedTuple

import numba
import numpy as np

from tinygrad_ds.device import owner


def contiguous(array: np.ndarray) -> np.ndarray:
    """`array`, copied if a kernel cannot take it as it is: strided, read-only or unaligned."""
    return array if array.flags.carray else np.array(array, order="C")


def as_rows(array: np.ndarray) -> np.ndarray:
    """The vectors of the last axis as the rows of a contiguous matrix: (..., d) -> (rows, d)."""
    d = array.shape[-1]
    return contiguous(array).reshape(array.size // d if d else 0, d)


class Spread(NamedTuple):
    """The memory from an array's first entry to its last, and where in it the rows of the last axis start."""

    memory: np.ndarray  # a contiguous vector
    layout: np.ndarray  # (5,) int64, for `row_start`


def spread(array: np.ndarray) -> Spread:
    """The rows of `array`, of one to four axes, where they lie; copied if that is not possible."""
    if array.ndim == 1:
        return Spread(contiguous(array), ONE_ROW)
    if array.flags.carray or not _in_pieces(array):
        array = contiguous(array)
        memory = array.reshape(-1)
    else:
        length = 1 + sum((n - 1) * step for n, step in zip(array.shape, array.strides)) // array.itemsize
        offset = _address(array) - _address(owner(array))
        memory = np.ndarray((length,), array.dtype, owner(array), offset)
    return Spread(memory, layout(array.shape, [step // array.itemsize for step in array.strides[:-1]]))


# A vector, seen as its only row.
ONE_ROW = np.array([1, 1, 0, 0, 0], dtype=np.int64)


def layout(shape: tuple[int, ...], steps: list[int]) -> np.ndarray:
    """For `row_start`: the sizes of the second and third leading axis of `shape`, the steps along all three.

    Axes that are not there are counted as in front, of size 1.
    """
    sizes = [1, 1, 1, *shape[:-1]]
    steps = [0, 0, 0, *steps]
    return np.array([*sizes[-2:], *steps[-3:]], dtype=np.int64)


@numba.njit
def row_start(n, layout):
    """Where row n of an array begins in its memory, counting rows in the order of the array's indices.

    Until the end of the third axis, which has layout[1] rows, each next row begins layout[4] entries further.
    """
    second, third = layout[0], layout[1]
    return n // (second * third) * layout[2] + n // third % second * layout[3] + n % third * layout[4]


def _in_pieces(array: np.ndarray) -> bool:
    """Whether the rows of the last axis are in one piece each, within memory that a kernel may have."""
    whole_steps = all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    in_one_piece = array.size > 0 and array.strides[-1] == array.itemsize
    return array.flags.aligned and whole_steps and in_one_piece and owner(array).flags.carray


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
