"""Attention by strips: as many queries as fill the lanes walk past the keys side by side, block after block.

Everything stands on its side, S^T = K Q^T with a query in each lane, so that maxima, exponentials and sums
of a row need no shuffling. The softmax is brought up to date with each block (online softmax: Milakov and
Gimelshein 2018; in attention: Dao et al. 2022), and keys behind the last one that a strip sees are not
visited. Two numbers are saved for each query, its largest score and one over its sum; the backward pass
computes P again from them.

All heads that share keys are one long row of queries, so that a new token of many heads fills the lanes
too. Arrays may have any strides, and results are laid out in memory as q, k and v are.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.lanes import (
    BYTES,
    add_product,
    exp,
    larger,
    load,
    set_product,
    splat,
    store,
    where_less,
)
from tinygrad_ds.ops.attention import check_shapes

KEYS = 96  # in a block


class AttentionSaved(NamedTuple):
    """What the backward reads: nothing of size time_q time_k."""

    q: np.ndarray  # (batch, heads, time_q, d)
    k: np.ndarray  # (batch, kv_heads, time_k, d)
    v: np.ndarray  # (batch, kv_heads, time_k, d_v)
    y: np.ndarray  # (batch, heads, time_q, d_v)
    first: np.ndarray  # (batch, time_q)
    largest: np.ndarray  # (batch, heads, time_q)  the largest score that a query sees
    over_sum: np.ndarray  # (batch, heads, time_q)  1 / sum of exp(score - largest); 0 if it sees none
    causal: bool
    scale: float


def attention(q, k, v, *, causal=True, scale=None, first=None):
    if not covered(q, k, v):
        return NotImplemented
    check_shapes(q, k, v, first)
    batch, heads, time_q, d = q.shape
    scale = d**-0.5 if scale is None else float(scale)
    first = np.zeros((batch, time_q), np.int64) if first is None else np.ascontiguousarray(first, np.int64)
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    y = np.empty_like(q, shape=(batch, heads, time_q, v.shape[-1]))
    largest, over_sum = np.empty((2, batch, heads, time_q), q.dtype)
    _attend_all(q, k, v, first, causal, scale, y, largest, over_sum)
    return y, AttentionSaved(q, k, v, y, first, largest, over_sum, causal, scale)


def attention_backward(saved, g):
    q, k, v, y, first, largest, over_sum, causal, scale = saved
    grad_q, grad_k, grad_v = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    _differentiate_all(
        q, k, v, first, causal, scale, y, largest, over_sum, _aligned(g), grad_q, grad_k, grad_v
    )
    return grad_q, grad_k, grad_v


def _aligned(array):
    return array if array.flags.aligned else array.copy()


_INPUT, _OUTPUT, _ROWS = "Array(T, 4, 'A', 1)", "Array(T, 4, 'A')", "T[:, :, ::1]"
_COMMON = f"{_INPUT}, {_INPUT}, {_INPUT}, int64[:, ::1], boolean, T"
_inner = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # compiled into its kernels only


@kernel(f"({_COMMON}, {_OUTPUT}, {_ROWS}, {_ROWS})")
def _attend_all(q, k, v, first, causal, scale, y, largest, over_sum):
    batch, heads, time_q, d = q.shape
    kv_heads, width = k.shape[1], BYTES // q.itemsize
    group = heads // kv_heads
    strips = (group * time_q + width - 1) // width
    count = batch * kv_heads * strips
    for part in prange(PARTS):
        q_t, y_t = np.zeros((d, width), q.dtype), np.empty((v.shape[3], width), q.dtype)
        s_t, rows = np.empty((KEYS, width), q.dtype), np.empty((4, width), q.dtype)
        for task in range(share(part, count), share(part + 1, count)):
            b, kv_head, strip = task // strips // kv_heads, task // strips % kv_heads, task % strips
            head = slice(kv_head * group, (kv_head + 1) * group)
            keys, values = k[b, kv_head], v[b, kv_head]
            outputs = y[b, head], largest[b, head], over_sum[b, head]
            _attend(
                q[b, head], keys, values, first[b], causal, scale, strip * width, outputs, q_t, s_t, y_t, rows
            )


@_inner
def _attend(q, k, v, first, causal, scale, start, outputs, q_t, s_t, y_t, rows):
    """One strip: the queries from number `start` on of a group. q (group, time_q, d), k (time_k, d)."""
    y, largest, over_sum = outputs
    low, high, time_q = rows[:1], rows[1:2], q.shape[1]
    filled, first_key, last_key, all_from, all_to = _seen(first, causal, start, q, k, low, high)
    for lane in range(filled):
        h, i = (start + lane) // time_q, (start + lane) % time_q
        for c in range(q.shape[2]):
            q_t[c, lane] = q[h, i, c] * scale
    zero, nothing = splat(0, s_t), splat(-np.inf, s_t)
    for c in range(y_t.shape[0]):
        store(zero, y_t, c, 0)
    m, total = nothing, zero
    for j in range(first_key, last_key + 1, KEYS):
        count = min(KEYS, last_key + 1 - j)
        s = s_t[:count]
        set_product(k[j : j + count], q_t, s)
        if j < all_from or j + count - 1 > all_to:
            _hide(s, j, low, high)
        before = m
        for n in range(count):
            m = larger(load(s, n, 0), m)
        base = where_less(nothing, m, m, zero)  # while no key has been seen, not -inf: -inf - -inf is NaN
        shrink = exp(before - base)
        total = total * shrink
        for n in range(count):
            p = exp(load(s, n, 0) - base)
            store(p, s, n, 0)
            total = total + p
        for c in range(y_t.shape[0]):
            store(load(y_t, c, 0) * shrink, y_t, c, 0)
        add_product(v[j : j + count].T, s, y_t)
    r = where_less(zero, total, splat(1, s_t) / total, total)
    store(where_less(nothing, m, m, zero), rows, 2, 0)
    store(r, rows, 3, 0)
    for c in range(y_t.shape[0]):
        store(load(y_t, c, 0) * r, y_t, c, 0)
    for lane in range(filled):
        h, i = (start + lane) // time_q, (start + lane) % time_q
        largest[h, i], over_sum[h, i] = rows[2, lane], rows[3, lane]
        for c in range(y_t.shape[0]):
            y[h, i, c] = y_t[c, lane]


@_inner
def _seen(first, causal, start, q, k, low, high):
    """Which keys the queries of a strip see: each lane from low to high.

    Returns how many queries there are, the first and last key that any of them sees, and the first and last
    that all of them see. Lanes behind the last query see what it sees; nobody reads them.
    """
    group, time_q, time_k = q.shape[0], q.shape[1], k.shape[0]
    filled = min(low.shape[1], group * time_q - start)
    first_key, last_key, all_from, all_to = time_k, -1, 0, time_k - 1
    for lane in range(low.shape[1]):
        i = (start + min(lane, filled - 1)) % time_q
        from_key = max(first[i], 0)
        to_key = min(time_k - 1, i + time_k - time_q) if causal else time_k - 1
        low[0, lane], high[0, lane] = from_key, to_key
        first_key, last_key = min(first_key, from_key), max(last_key, to_key)
        all_from, all_to = max(all_from, from_key), min(all_to, to_key)
    return filled, first_key, last_key, all_from, all_to


@_inner
def _hide(s, j, low, high):
    """-inf for the scores of the keys that a lane does not see. Row n of s is key j + n."""
    low, high, nothing = load(low, 0, 0), load(high, 0, 0), splat(-np.inf, s)
    for n in range(s.shape[0]):
        key = splat(j + n, s)
        behind = where_less(key, low, nothing, load(s, n, 0))
        store(where_less(high, key, nothing, behind), s, n, 0)


@kernel(f"({_COMMON}, {_INPUT}, {_ROWS}, {_ROWS}, {_INPUT}, {_OUTPUT}, {_OUTPUT}, {_OUTPUT})")
def _differentiate_all(q, k, v, first, causal, scale, y, largest, over_sum, g, grad_q, grad_k, grad_v):
    kv_heads, time_k, d_v = v.shape[1:]
    group, d, width = q.shape[1] // kv_heads, q.shape[3], BYTES // q.itemsize
    count = q.shape[0] * kv_heads
    for part in prange(PARTS):
        for task in range(share(part, count), share(part + 1, count)):
            b, kv_head = task // kv_heads, task % kv_heads
            head = slice(kv_head * group, (kv_head + 1) * group)
            dk = np.zeros((time_k, (d + width - 1) // width * width), q.dtype)
            dv = np.zeros((time_k, (d_v + width - 1) // width * width), q.dtype)
            keys, values = k[b, kv_head], v[b, kv_head]
            outputs = y[b, head], largest[b, head], over_sum[b, head]
            _differentiate(
                q[b, head],
                keys,
                values,
                first[b],
                causal,
                scale,
                outputs,
                g[b, head],
                grad_q[b, head],
                dk,
                dv,
            )
            for j in range(time_k):
                for c in range(d):
                    grad_k[b, kv_head, j, c] = dk[j, c]
                for c in range(d_v):
                    grad_v[b, kv_head, j, c] = dv[j, c]


@_inner
def _differentiate(q, k, v, first, causal, scale, outputs, g, grad_q, dk, dv):
    """All strips of a group; adds to dk and dv, whose rows are filled up to whole lanes.

    With r = over_sum and e = exp(S - largest), P = r e. The factor r goes into g' = r g, once for a query
    instead of once for each of its keys: dV = e^T g' and dS = e * (g' v^T - rowsum(g' * y)).
    """
    y, largest, over_sum = outputs
    group, time_q, d = q.shape
    d_v, width = v.shape[1], BYTES // q.itemsize
    rows = np.zeros((4, width), q.dtype)
    low, high, m, mean = rows[:1], rows[1:2], rows[2:3], rows[3:]
    q_t, q_rows = np.zeros((d, width), q.dtype), np.zeros((width, dk.shape[1]), q.dtype)
    g_t, g_rows = np.zeros((d_v, width), q.dtype), np.zeros((width, dv.shape[1]), q.dtype)
    e_t, ds_t = np.empty((KEYS, width), q.dtype), np.empty((KEYS, width), q.dtype)
    dq_t, zero, nothing = np.empty((d, width), q.dtype), splat(0, q_t), q.dtype.type(0)
    for start in range(0, group * time_q, width):
        filled, first_key, last_key, all_from, all_to = _seen(first, causal, start, q, k, low, high)
        for lane in range(width):
            row = start + min(lane, filled - 1)
            h, i = row // time_q, row % time_q
            r = over_sum[h, i] if lane < filled else nothing
            m[0, lane], mean[0, lane] = largest[h, i], 0
            for c in range(d):
                q_t[c, lane] = q_rows[lane, c] = q[h, i, c] * scale
            for c in range(d_v):
                g_t[c, lane] = g_rows[lane, c] = g[h, i, c] * r
                mean[0, lane] += g_rows[lane, c] * y[h, i, c]
        for c in range(d):
            store(zero, dq_t, c, 0)
        for j in range(first_key, last_key + 1, KEYS):
            count = min(KEYS, last_key + 1 - j)
            e, ds = e_t[:count], ds_t[:count]
            set_product(k[j : j + count], q_t, e)
            set_product(v[j : j + count], g_t, ds)
            if j < all_from or j + count - 1 > all_to:
                _hide(e, j, low, high)
            base, average = load(m, 0, 0), load(mean, 0, 0)
            for n in range(count):
                p = exp(load(e, n, 0) - base)
                store(p, e, n, 0)
                store(p * (load(ds, n, 0) - average), ds, n, 0)
            add_product(k[j : j + count].T, ds, dq_t)
            add_product(ds, q_rows, dk[j : j + count])
            add_product(e, g_rows, dv[j : j + count])
        for lane in range(filled):
            h, i = (start + lane) // time_q, (start + lane) % time_q
            for c in range(d):
                grad_q[h, i, c] = dq_t[c, lane] * scale
