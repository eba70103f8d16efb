"""Embedding on the device: launches of indexing.cu. An id that is no row stops the launch."""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import as_rows, blocks, contiguous, covered, launch, real_of
from tinygrad_ds.ops.broadcast import Form, form


class EmbeddingSaved(NamedTuple):
    """What the gradient must look like, and the rows that were read."""

    weight: Form
    ids: cupy.ndarray  # (...)


def embedding(weight, ids):
    if not covered(weight, narrow=True) or weight.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        return NotImplemented
    weight, ids = contiguous(weight), contiguous(ids.astype(cupy.int64, copy=False))
    y, d = cupy.empty((*ids.shape, weight.shape[1]), weight.dtype), weight.shape[1]
    arguments = weight, ids, y, ids.size, d, len(weight)
    launch("indexing.embedding", (blocks(y.size, 256),), (256,), *arguments, dtype=weight.dtype)
    return y, EmbeddingSaved(form(weight), ids)


def embedding_backward(saved, g):
    (shape, kind), ids = saved
    grad = cupy.zeros(shape, real_of(g))
    arguments = ids, as_rows(g), grad, ids.size, shape[1], shape[0]
    launch("indexing.embedding_backward", (ids.size,), (128,), *arguments, dtype=kind)
    return grad.astype(kind, copy=False), None
