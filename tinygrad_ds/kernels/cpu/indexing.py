"""The gradient of an embedding, fused: row v of it is the sum of g over the positions that read row v.

Every part owns a range of rows and looks through all ids for those in it, so no two parts write to one row,
and each row's sum runs in the order of the positions. The reference sorts first. Forward is a copy of rows,
which NumPy does as well as anyone: it is the reference's.
"""

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import as_rows, contiguous
from tinygrad_ds.ops import indexing


def embedding(weight, ids):
    if not covered(weight) or weight.ndim != 2:
        return NotImplemented
    return indexing.embedding.forward(weight, ids)


def embedding_backward(saved, g):
    weight, ids = saved
    grad = np.empty(weight.shape, weight.dtype)
    _add_rows(as_rows(g), contiguous(ids.astype(np.int64, copy=False)).reshape(-1), grad)
    return grad, None


@kernel("(T[:, ::1], int64[::1], T[:, ::1])")
def _add_rows(g, ids, grad):
    zero = g.dtype.type(0)
    for part in prange(PARTS):
        start, stop = share(part, len(grad)), share(part + 1, len(grad))
        grad[start:stop] = zero
        for j in range(len(ids)):
            if start <= ids[j] < stop:
                row = grad[ids[j]]
                for i in range(g.shape[1]):
                    row[i] += g[j, i]
