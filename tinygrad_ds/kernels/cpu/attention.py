"""Attention by strips: as many queries as fill the lanes walk past the keys side by side, block after block.

Everything stands on its side, S^T = K Q^T with a query in each lane, so that maxima, exponentials and sums
of a row need no shuffling. The softmax is brought up to date with each block (online softmax: Milakov and
Gimelshein 2018; in attention: Dao et al. 2022), and keys behind the last one that a strip sees are not
visited. Two numbers are saved for each query, its largest score and one over its sum; the backward pass
computes P again from them.

All heads that share keys are one long row of queries, so that a new token of many heads fills the lanes
too. Heads are read where they lie, and results are laid out in memory as q, k and v are.
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import prange

from tinygrad_ds import settings
from tinygrad_ds.device import owner
from tinygrad_ds.kernels.cpu.common import PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.lanes import BYTES, exp, larger, load, splat, store, turn, where_less
from tinygrad_ds.kernels.cpu.tiles import add_product, set_product
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
    q, k, v = _readable(q), _readable(k), _readable(v)
    if settings.current().recording:
        q, k, v = _alone(q), _alone(k), _alone(v)
    y = _like(q, v.shape[-1])
    largest, over_sum = np.empty((2, batch, heads, time_q), q.dtype)
    _attend_all(q, k, v, first, causal, scale, y, largest, over_sum)
    return y, AttentionSaved(q, k, v, y, first, largest, over_sum, causal, scale)


def attention_backward(saved, g):
    q, k, v, y, first, largest, over_sum, causal, scale = saved
    d, d_v = q.shape[-1], v.shape[-1]
    grad_q = _like(q, d)
    grad_k, grad_v = (_like(x, _whole_lanes(x.shape[-1], x.dtype), np.zeros) for x in (k, v))
    _differentiate_all(
        q, k, v, first, causal, scale, y, largest, over_sum, _readable(g), grad_q, grad_k, grad_v
    )
    return grad_q, grad_k[..., :d], grad_v[..., :d_v]


def _like(array, size, make=np.empty):
    """An array of rows of `size` numbers that lie in memory in the order of those of `array`."""
    order = sorted(range(3), key=lambda axis: -array.strides[axis])
    memory = make([*(array.shape[axis] for axis in order), size], array.dtype)
    return memory.transpose(*(order.index(axis) for axis in range(3)), 3)


def _whole_lanes(size, dtype):
    width = BYTES // dtype.itemsize
    return (size + width - 1) // width * width


def _alone(array):
    """`array`, copied if it is part of more: MLA's values would keep the keys beside them alive."""
    return array.copy(order="K") if owner(array).nbytes > array.nbytes else array


def _readable(array):
    """`array`, copied unless its last axis is in one piece."""
    return array if array.flags.aligned and array.strides[-1] == array.itemsize else array.copy()


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
    parts = min(PARTS, count)
    for part in prange(parts):
        queries, results = _strip(d, q), _strip(v.shape[3], q)
        s_t, rows = np.empty((KEYS, width), q.dtype), np.empty((4, width), q.dtype)
        for task in range(part * count // parts, (part + 1) * count // parts):
            b, kv_head, strip = task // strips // kv_heads, task // strips % kv_heads, task % strips
            head = slice(kv_head * group, (kv_head + 1) * group)
            inputs = q[b, head], k[b, kv_head], v[b, kv_head], first[b]
            outputs = y[b, head], largest[b, head], over_sum[b, head]
            _attend(inputs, causal, scale, strip * width, outputs, queries, results, s_t, rows)


@_inner
def _attend(inputs, causal, scale, start, outputs, queries, results, s_t, rows):
    """One strip: the queries from number `start` on of a group. q (group, time_q, d), k (time_k, d)."""
    (q, k, v, first), (y, largest, over_sum) = inputs, outputs
    low, high = rows[:1], rows[1:2]
    filled, first_key, last_key, all_from, all_to = _seen(first, causal, start, q, k, low, high)
    zero, nothing = splat(0, s_t), splat(-np.inf, s_t)
    store(splat(scale, s_t), rows, 2, 0)
    q_t, y_t = _gather(q, start, filled, rows[2], queries), results[1]
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
        for c in range(v.shape[1]):
            store(load(y_t, c, 0) * shrink, y_t, c, 0)
        add_product(v[j : j + count].T, s, y_t[: v.shape[1]])
    r = where_less(zero, total, splat(1, s_t) / total, total)
    store(where_less(nothing, m, m, zero), rows, 2, 0)
    store(r, rows, 3, 0)
    for c in range(v.shape[1]):
        store(load(y_t, c, 0) * r, y_t, c, 0)
    _scatter(results, y, start, filled)
    for lane in range(filled):
        h, i = _place(start + lane, q)
        largest[h, i], over_sum[h, i] = rows[2, lane], rows[3, lane]


@_inner
def _strip(d, like):
    """Room for d numbers a query, filled up to whole lanes: a row for each query, and turned."""
    width = BYTES // like.itemsize
    size = (d + width - 1) // width * width
    return np.zeros((width, size), like.dtype), np.zeros((size, width), like.dtype)


@_inner
def _place(number, x):
    """The head and the time of a query, counted through the group that x (group, time_q, ..) is."""
    return number // x.shape[1], number % x.shape[1]


@_inner
def _gather(x, start, filled, factors, strip):
    """The rows of a strip's queries, each times its factor; lanes behind the last repeat it."""
    rows, turned = strip
    width = turned.shape[1]
    for lane in range(width):
        h, i = _place(start + min(lane, filled - 1), x)
        head, factor, whole = x[h], factors[lane], x.shape[2] // width * width
        by = splat(factor, rows)
        for c in range(0, whole, width):
            store(load(head, i, c) * by, rows, lane, c)
        for c in range(whole, x.shape[2]):
            rows[lane, c] = head[i, c] * factor
    for c in range(0, rows.shape[1], width):
        turn(rows, c, turned, c)
    return turned


@_inner
def _scatter(strip, x, start, filled):
    """The way back: what is in the lanes of a strip to the rows of its queries."""
    rows, turned = strip
    width = turned.shape[1]
    for c in range(0, rows.shape[1], width):
        turn(turned[c:], 0, rows[:, c:], 0)
    for lane in range(filled):
        h, i = _place(start + lane, x)
        head, whole = x[h], x.shape[2] // width * width
        for c in range(0, whole, width):
            store(load(rows, lane, c), head, i, c)
        for c in range(whole, x.shape[2]):
            head[i, c] = rows[lane, c]


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
    kv_heads = k.shape[1]
    group, count = q.shape[1] // kv_heads, q.shape[0] * kv_heads
    for part in prange(PARTS):
        for task in range(share(part, count), share(part + 1, count)):
            b, kv_head = task // kv_heads, task % kv_heads
            head = slice(kv_head * group, (kv_head + 1) * group)
            inputs = q[b, head], k[b, kv_head], v[b, kv_head], first[b]
            outputs = y[b, head], largest[b, head], over_sum[b, head]
            gradients = grad_q[b, head], grad_k[b, kv_head], grad_v[b, kv_head]
            _differentiate(inputs, causal, scale, outputs, g[b, head], gradients)


@_inner
def _differentiate(inputs, causal, scale, outputs, g, gradients):
    """All strips of a group; adds to dk and dv.

    With r = over_sum and e = exp(S - largest), P = r e. The factor r goes into g' = r g, once for a query
    instead of once for each of its keys: dV = e^T g' and dS = e * (g' v^T - rowsum(g' * y)).
    """
    (q, k, v, first), (y, largest, over_sum), (dq, dk, dv) = inputs, outputs, gradients
    group, time_q, d = q.shape
    d_v, width = v.shape[1], BYTES // q.itemsize
    rows = np.zeros((4, width), q.dtype)
    low, high, m, factors = rows[:1], rows[1:2], rows[2:3], rows[3]
    queries, slopes, results, changes = _strip(d, q), _strip(d_v, q), _strip(d_v, q), _strip(d, q)
    e_t, ds_t = np.empty((KEYS, width), q.dtype), np.empty((KEYS, width), q.dtype)
    zero, dq_t, none = splat(0, e_t), changes[1], q.dtype.type(0)
    for start in range(0, group * time_q, width):
        filled, first_key, last_key, all_from, all_to = _seen(first, causal, start, q, k, low, high)
        factors[:] = scale
        q_t = _gather(q, start, filled, factors, queries)
        factors[:] = q.dtype.type(1)
        y_t = _gather(y, start, filled, factors, results)
        for lane in range(width):
            h, i = _place(start + min(lane, filled - 1), q)
            m[0, lane] = largest[h, i]
            factors[lane] = over_sum[h, i] if lane < filled else none
        g_t = _gather(g, start, filled, factors, slopes)
        base, mean = load(m, 0, 0), zero
        for c in range(d_v):
            mean = mean + load(g_t, c, 0) * load(y_t, c, 0)
        for c in range(d):
            store(zero, dq_t, c, 0)
        for j in range(first_key, last_key + 1, KEYS):
            count = min(KEYS, last_key + 1 - j)
            e, ds = e_t[:count], ds_t[:count]
            set_product(k[j : j + count], q_t, e)
            set_product(v[j : j + count], g_t, ds)
            if j < all_from or j + count - 1 > all_to:
                _hide(e, j, low, high)
            for n in range(count):
                p = exp(load(e, n, 0) - base)
                store(p, e, n, 0)
                store(p * (load(ds, n, 0) - mean), ds, n, 0)
            add_product(k[j : j + count].T, ds, dq_t[:d])
            add_product(ds, queries[0], dk[j : j + count])
            add_product(e, slopes[0], dv[j : j + count])
        by = splat(scale, e_t)
        for c in range(d):
            store(load(dq_t, c, 0) * by, dq_t, c, 0)
        _scatter(changes, dq, start, filled)
