"""Files of named tensors in the safetensors format, read through memory maps and written one tensor at a
time.

A file is 8 bytes with the length of a header, the header in JSON, {name: {dtype, shape, data_offsets}}, and
the entries of all tensors one behind the other. Nothing in a header is believed before it is checked.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds.dtypes import dtype as named_dtype

NAMES = {  # as the format spells number formats
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPES = {code: named_dtype(name) for code, name in NAMES.items()}
CODES = {kind: code for code, kind in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, as in the format's own library


class CheckpointError(ValueError):
    """A checkpoint that cannot be read. The message names the file or tensors, and what is wrong there."""


class Stored(NamedTuple):
    """One tensor in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    def map(self) -> np.ndarray:
        """The tensor, read-only, in memory that the file backs: pages come when touched."""
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors in a file by name. Raises CheckpointError for one that is truncated or of another kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise CheckpointError(
                    f"{path} is no safetensors file, or only its beginning: its header should have {length} "
                    f"bytes, but the file has {size}"
                )
            entries = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no safetensors file: its header is not JSON") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is a {type(entries).__name__}")
    entries.pop("__metadata__", None)
    return check_entries(path, entries, 8 + length, size)


def check_entries(path: Path, entries: dict, start: int, size: int) -> dict[str, Stored]:
    """Every entry of a header, once it is certain that all lie within the file and none over another."""
    stored, spans = {}, []
    for name, entry in entries.items():
        try:
            kind, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            numbers = [*shape, begin, end]
            fits = all(type(n) is int and n >= 0 for n in numbers)
            if not fits or end - begin != math.prod(shape) * kind.itemsize:
                raise ValueError
        except (TypeError, ValueError, KeyError):
            raise CheckpointError(
                f"{path}: the header says of {name!r} {json.dumps(entry)[:200]}, which cannot be"
            ) from None
        stored[name] = Stored(path, kind, shape, start + begin)
        spans.append((start + begin, start + end))
    position = start
    for begin, end in sorted(spans):
        if begin != position:
            raise CheckpointError(f"{path}: its tensors overlap or leave gaps at byte {min(begin, position)}")
        position = end
    if position != size:
        what = "it is truncated" if position > size else "something foreign follows"
        raise CheckpointError(f"{path}: its tensors end at byte {position} but the file at {size}: {what}")
    return stored


class Planned(NamedTuple):
    """A tensor to be written: `make()` gives its entries when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(path: Path, tensors: Iterable[Planned]) -> None:
    """Write a file, holding one tensor in memory at a time; on disk for sure when this returns."""
    tensors, offset = list(tensors), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for each in tensors:
        span = [offset, offset + each.nbytes]
        header[each.name] = {"dtype": CODES[each.dtype], "shape": list(each.shape), "data_offsets": span}
        offset += each.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for each in tensors:
            values = np.ascontiguousarray(each.make(), dtype=each.dtype)
            file.write(values.view(np.uint8).data if values.size else b"")
        file.flush()
        os.fsync(file.fileno())
