"""Muon's step over all matrices on the device: launches of muon.cu, and products by cuBLAS, a stack a call.

A step takes 4 launches and 2 more for every iteration of Newton-Schulz, however many matrices there are, and
3 products of each shape an iteration. Nothing is read by the host.
"""

from collections.abc import Sequence

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, launch
from tinygrad_ds.kernels.cuda.optimizer import PIECE, THREADS, Tables


def step(
    tables: Tables,
    groups: Sequence[tuple[cupy.ndarray, Sequence[tuple]]],
    control: cupy.ndarray | None,
    *,
    lr: float,
    momentum: float,
    keep: float,
    coefficients: tuple[float, float, float],
    iterations: int,
) -> None:
    """Move all matrices: see `train.muon.Muon`, whose step this is.

    groups: momentum (count, rows, columns) and, for each of its matrices, parameter and gradient or None.
    keep: what the decay leaves of a parameter. control: norm, factor and decision, or None.
    """
    dtype = groups[0][0].dtype
    rows, sizes, entries, first = [], [], 0, 0
    for m, matrices in groups:
        for of_matrix, (p, g) in zip(m, matrices, strict=True):
            addresses = p.data.ptr, 0 if g is None else g.data.ptr, of_matrix.data.ptr
            rows.append((*addresses, entries, *p.shape, first))
            sizes.append(p.size)
            entries, first = entries + p.size, first + blocks(p.size, PIECE)
    where, pieces, _ = tables.made(rows, sizes, dtype)
    x, turned, y = (cupy.empty(entries, dtype) for _ in range(3))
    sides = [(m.shape[0], min(m.shape[1:]), max(m.shape[1:])) for m, _ in groups]
    gram, squared = (cupy.empty(sum(count * k * k for count, k, _ in sides), dtype) for _ in range(2))
    xs, ys = ([*stacks(buffer, sides)] for buffer in (x, y))
    turns = [*stacks(turned, [(count, n, k) for count, k, n in sides])]
    grams, squares = (
        [*stacks(buffer, [(count, k, k) for count, k, _ in sides])] for buffer in (gram, squared)
    )
    of_piece, all_pieces = cupy.empty(len(pieces)), (len(pieces),)
    common = where, pieces, control, x, turned
    launch("muon.ahead", all_pieces, THREADS, *common, of_piece, float(momentum), dtype=dtype)
    launch("muon.normalize", all_pieces, THREADS, *common, of_piece, dtype=dtype)
    a, b, c = coefficients
    for _ in range(iterations):
        for one, other, into, twice in zip(xs, turns, grams, squares):
            cupy.matmul(one, other, out=into)
            cupy.matmul(into, into, out=twice)
        grid = (blocks(gram.size, *THREADS),)
        launch("muon.mix", grid, THREADS, gram, squared, gram.size, b, c, dtype=dtype)
        for one, into, polynomial in zip(xs, ys, squares):
            cupy.matmul(polynomial, one, out=into)
        launch("muon.add", all_pieces, THREADS, *common, y, a, dtype=dtype)
    launch("muon.apply", all_pieces, THREADS, *common, float(lr), float(keep), dtype=dtype)


def stacks(buffer: cupy.ndarray, shapes: Sequence[tuple[int, int, int]]) -> Sequence[cupy.ndarray]:
    """Views of these shapes, one behind the other."""
    views, at = [], 0
    for count, rows, columns in shapes:
        views.append(buffer[at : at + count * rows * columns].reshape(count, rows, columns))
        at += count * rows * columns
    return views
