"""Attention by tiles on the device: launches of attention.cu.

Results and gradients lie in memory as (batch, time, heads, size), so that putting heads behind the time, as
layers do, moves nothing.
"""

from typing import NamedTuple

import cupy

from tinygrad_ds.kernels.cuda.common import blocks, contiguous, covered, in_pieces, launch, real_of, steps
from tinygrad_ds.ops.attention import check_shapes

ROWS = 16  # of a block, as in attention.cu
WIDEST = 32 * 18  # numbers of a key or value whose sums still go in registers


class AttentionSaved(NamedTuple):
    """What the backward reads: nothing of size time_q time_k."""

    q: cupy.ndarray  # (batch, heads, time_q, d)
    k: cupy.ndarray  # (batch, kv_heads, time_k, d)
    v: cupy.ndarray  # (batch, kv_heads, time_k, d_v)
    y: cupy.ndarray  # (batch, time_q, heads, d_v)
    lse: cupy.ndarray  # (batch, heads, time_q)
    first: cupy.ndarray | None  # (batch, time_q)
    causal: bool
    scale: float


def attention(q, k, v, *, causal=True, scale=None, first=None):
    if not covered(q, k, v, narrow=True) or max(q.shape[-1], v.shape[-1]) > WIDEST:
        return NotImplemented
    check_shapes(q, k, v, first)
    batch, heads, time_q, d = q.shape
    d_v = v.shape[-1]
    scale = d**-0.5 if scale is None else float(scale)
    if first is not None:
        first = cupy.ascontiguousarray(cupy.asarray(first), dtype=cupy.int64)
    q, k, v = in_pieces(q), in_pieces(k), in_pieces(v)
    y, lse = cupy.empty((batch, time_q, heads, d_v), q.dtype), cupy.empty((batch, heads, time_q), real_of(q))
    saved = AttentionSaved(q, k, v, y, lse, first, causal, scale)
    _launch("forward", saved, (blocks(time_q, ROWS), heads, batch), (y, lse))
    return y.swapaxes(1, 2), saved


def attention_backward(saved, g):
    q, k, v, y, lse = saved[:5]
    batch, heads, time_q, d = q.shape
    kv_heads, time_k = k.shape[1:3]
    d_v, kind = v.shape[-1], q.dtype
    g = contiguous(g.swapaxes(1, 2))
    along = cupy.empty_like(lse)
    arguments = g, y, along, lse.size, heads, time_q, d_v
    launch(
        "attention.backward_along", (blocks(lse.size, 4),), (128,), *arguments, dtype=kind, **_columns(saved)
    )
    grad_q = cupy.empty((batch, time_q, heads, d), kind)
    grad_k, grad_v = (cupy.empty((batch, time_k, kv_heads, size), kind) for size in (d, d_v))
    _launch("backward_q", saved, (blocks(time_q, ROWS), heads, batch), (g, lse, along, grad_q))
    _launch("backward_kv", saved, (blocks(time_k, ROWS), kv_heads, batch), (g, lse, along, grad_k, grad_v))
    return tuple(grad.swapaxes(1, 2) for grad in (grad_q, grad_k, grad_v))


def _launch(name, saved, grid, arrays):
    q, k, v, first = saved.q, saved.k, saved.v, saved.first
    sizes = q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.shape[1] // k.shape[1]
    layout = *steps(q, 3), *steps(k, 3), *steps(v, 3)
    arguments = q, k, v, first, *arrays, *sizes, int(saved.causal), saved.scale, *layout
    launch(f"attention.{name}", grid, (128,), *arguments, dtype=q.dtype, **_columns(saved))


def _columns(saved):
    """The constants of this build: columns to a lane."""
    sizes = {"KEY_COLUMNS": saved.q.shape[-1], "VALUE_COLUMNS": saved.v.shape[-1]}
    return {"constants": tuple((name, blocks(size, 32)) for name, size in sizes.items())}
