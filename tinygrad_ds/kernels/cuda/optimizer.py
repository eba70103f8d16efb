"""AdamW and clipping over all leaves at once on the device: launches of optimizer.cu.

A step needs nothing from the host: `decide` leaves norm, factor and finite flag in device memory, and what
follows reads them there. The tables of addresses go to the device again only where an address has changed.
"""

from collections.abc import Sequence

import cupy
import numpy as np

from tinygrad_ds.kernels.cuda.common import REAL, launch

PIECE = 1 << 16  # as in optimizer.cu
THREADS = (256,)


class Leaves:
    """The leaves of a model as pieces: parameters, gradients and, for AdamW, both moments.

    All are contiguous and of one dtype, float32 or float64; ValueError otherwise.
    """

    def __init__(self) -> None:
        self._known: bytes = b""
        self._tables: tuple[cupy.ndarray, cupy.ndarray] | None = None

    def tables(self, rows: Sequence[tuple], decays: Sequence[bool]) -> tuple[cupy.ndarray, cupy.ndarray]:
        """leaves (L, 6) and pieces (P, 2) on the device for rows of (parameter, grad, m, v); m, v may be None."""
        kind = rows[0][0].dtype
        for row in rows:
            for array in row:
                if array is not None and not (array.flags.c_contiguous and array.dtype == kind):
                    raise ValueError(
                        f"a leaf has an array {array.dtype}{array.shape} with strides {array.strides}: the "
                        f"optimizer's kernels take contiguous arrays, all {kind}"
                    )
        leaves = np.array(
            [
                (*(0 if array is None else array.data.ptr for array in row), row[0].size, decay)
                for row, decay in zip(rows, decays, strict=True)
            ],
            dtype=np.int64,
        )
        if self._tables is None or leaves.tobytes() != self._known:
            pieces = [(i, start) for i, row in enumerate(rows) for start in range(0, row[0].size, PIECE)]
            self._known = leaves.tobytes()
            self._tables = cupy.asarray(leaves), cupy.asarray(np.array(pieces, dtype=np.int64))
        return self._tables


def covers(arrays: Sequence[cupy.ndarray]) -> bool:
    """Whether these gradients can be taken: contiguous, float32 or float64, all of one kind."""
    kinds = {array.dtype for array in arrays}
    return len(kinds) == 1 and kinds.pop().name in REAL and all(a.flags.c_contiguous for a in arrays)


def decide(tables: tuple, dtype: np.dtype, max_norm: float, watched: cupy.ndarray | None) -> cupy.ndarray:
    """control (3,) float64: the norm of all gradients, the factor that clips it, 1 if all is finite."""
    leaves, pieces = tables
    of_piece, control = cupy.empty(len(pieces)), cupy.empty(3)
    launch("optimizer.squares", (len(pieces),), THREADS, leaves, pieces, of_piece, dtype=dtype)
    count = 0 if watched is None else watched.size
    arguments = of_piece, watched, control, len(pieces), count, float(max_norm)
    launch("optimizer.decide", (1,), THREADS, *arguments, dtype=dtype)
    return control


def clip(tables: tuple, dtype: np.dtype, control: cupy.ndarray) -> None:
    """Scale all gradients in place by the factor of `control`."""
    leaves, pieces = tables
    launch("optimizer.clip", (len(pieces),), THREADS, leaves, pieces, control, dtype=dtype)


def adamw(
    tables: tuple,
    dtype: np.dtype,
    control: cupy.ndarray | None,
    *,
    t: int,
    lr: float,
    betas: tuple[float, float],
    decay: float,
    eps: float,
) -> None:
    """Step t of AdamW over all leaves, their gradients scaled on the way; nothing where `control` says so."""
    leaves, pieces = tables
    b1, b2 = betas
    numbers = [float(each) for each in (lr, b1, b2, eps, decay, 1 - b1**t, 1 - b2**t)]
    launch("optimizer.adamw", (len(pieces),), THREADS, leaves, pieces, control, *numbers, dtype=dtype)
