"""AdamW and clipping over all leaves at once on the device: launches of optimizer.cu.

A step needs nothing from the host: `decide` leaves norm, factor and finite flag in device memory, and what
follows reads them there. Tables of addresses go to the device again only where an address has changed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cupy
import numpy as np

from tinygrad_ds.kernels.cuda.common import REAL, launch

PIECE = 1 << 16  # as in optimizer.cu
THREADS = (256,)


class Table(NamedTuple):
    """Where the leaves are, on the device."""

    leaves: cupy.ndarray  # (L, 6), for Muon (L, 7)
    pieces: cupy.ndarray  # (P, 2)
    dtype: np.dtype


class Tables:
    """Makes tables, and keeps the last one for as long as all arrays stay where they are."""

    def __init__(self) -> None:
        self._key: tuple = ()
        self._last: Table | None = None

    def of(self, rows: Sequence[tuple], decays: Sequence[bool] = ()) -> Table:
        """The table for rows of (parameter, gradient) or (parameter, gradient, m, v), and what decays."""
        decays = decays or [False] * len(rows)
        leaves = [
            (*(array.data.ptr for array in row), *[0] * (4 - len(row)), row[0].size, int(decay))
            for row, decay in zip(rows, decays)
        ]
        return self.made(leaves, [row[0].size for row in rows], rows[0][0].dtype)

    def made(self, leaves: Sequence[tuple[int, ...]], sizes: Sequence[int], dtype: np.dtype) -> Table:
        """The table of these rows of numbers, for leaves of these sizes."""
        key = (*leaves, dtype)
        if self._last is None or key != self._key:
            pieces = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, PIECE)]
            on_leaves, on_pieces = (cupy.asarray(np.array(each, dtype=np.int64)) for each in (leaves, pieces))
            self._key, self._last = key, Table(on_leaves, on_pieces, dtype)
        return self._last


def covers(arrays: Sequence[cupy.ndarray], moments: Sequence[cupy.ndarray] = ()) -> bool:
    """Whether these can stand in one table: contiguous, all float32 or all float64, none empty.

    moments: like the others, or bfloat16 beside float32.
    """
    kind = arrays[0].dtype
    narrow = moments[0].dtype if moments else kind
    fits = kind.name in REAL and (narrow == kind or (narrow.name, kind.name) == ("bfloat16", "float32"))
    right = [a.dtype == kind for a in arrays] + [m.dtype == narrow for m in moments]
    return fits and all(right) and all(a.flags.c_contiguous and a.size for a in (*arrays, *moments))


def decide(table: Table, max_norm: float, watched: cupy.ndarray | None = None) -> cupy.ndarray:
    """control (3,) float64: the norm of all gradients, the factor that clips it, 1 if all is finite, else 0.

    watched (k,) float64: what must be finite beside the norm.
    """
    leaves, pieces, dtype = table
    of_piece, control = cupy.empty(len(pieces)), cupy.empty(3)
    launch("optimizer.squares", (len(pieces),), THREADS, leaves, pieces, of_piece, dtype=dtype)
    count = 0 if watched is None else watched.size
    arguments = of_piece, watched, control, len(pieces), count, float(max_norm)
    launch("optimizer.decide", (1,), THREADS, *arguments, dtype=dtype)
    return control


def clip(table: Table, control: cupy.ndarray) -> None:
    """Scale all gradients in place by the factor, which is 1 from then on; zeros where no step is taken."""
    leaves, pieces, dtype = table
    launch("optimizer.clip", (len(pieces),), THREADS, leaves, pieces, control, dtype=dtype)
    control[1:2].fill(1.0)


def adamw(
    table: Table,
    control: cupy.ndarray | None,
    *,
    t: int,
    lr: float,
    betas: tuple[float, float],
    decay: float,
    eps: float,
    moments: np.dtype | None = None,
) -> None:
    """Step t of AdamW over all leaves, their gradients scaled on the way; nothing where `control` says so.

    moments: their dtype, None for that of the leaves.
    """
    leaves, pieces, dtype = table
    b1, b2 = betas
    numbers = [float(each) for each in (lr, b1, b2, eps, decay, 1 - b1**t, 1 - b2**t)]
    arguments = leaves, pieces, control, *numbers
    launch("optimizer.adamw", (len(pieces),), THREADS, *arguments, dtype=moments or dtype)
