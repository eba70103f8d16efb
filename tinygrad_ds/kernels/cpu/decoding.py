"""Decoding, fused: one token for every row of a small batch.

The time goes into reading weights, so each is read once, row by row, for all rows of the batch while it is in
a register. One kernel does the whole attention of a layer in the absorbed form: a latent column is read once
for all heads. The experts' kernel cuts the width of every chosen expert into SLICES, one a thread, and adds
the slices in order.
"""

import sys

import numpy as np
from numba import njit, prange

from tinygrad_ds.kernels.cpu.arithmetic import exp
from tinygrad_ds.kernels.cpu.common import FASTMATH, PARTS, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.routing import choose, options_of_select
from tinygrad_ds.kernels.cpu.vectors import normalise, times, times_rows

SLICES = 2
MOST_ROWS = 16  # of a batch that these kernels serve better than BLAS
NEVER = sys.maxsize
PARALLEL_FROM = 1 << 10  # numbers in all rows: below, waking a thread takes longer than it saves


def latent_attention_step(
    x, norm, weights, latents, length, first, cos, sin, *, heads, scale, eps, latent_eps, interleaved
):
    """One kernel for the layer; see ops/decoding.py."""
    x = contiguous(x)
    q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b, o = weights
    if q_a is None:
        q_a, q_a_norm = np.empty((0, x.shape[1]), x.dtype), np.empty(0, x.dtype)
    y = np.empty_like(x)
    arrays = x, norm, q_a, q_a_norm, q_b, kv_a, kv_a_norm, kv_b, o, latents, cos, sin, y
    if not _ready(arrays):
        return NotImplemented
    _latent_attention(*arrays, length, first, heads, scale, eps, latent_eps, interleaved)
    return y


def linear_step(x, weight):
    """Rows of W in parts; many rows of x are better served by BLAS."""
    x = contiguous(x)
    if len(x) > MOST_ROWS or not _ready((x, weight)):
        return NotImplemented
    y = np.empty((len(x), len(weight)), x.dtype)
    _linear(x, weight, y)
    return y


def mlp_step(x, norm, gate_up, down, *, eps):
    """As experts, with one that every row takes in full, and none shared."""
    x = contiguous(x)
    x_hat, sums = np.empty_like(x), np.empty((_slices(x), *x.shape), x.dtype)
    if not _ready((x, norm, gate_up, down)):
        return NotImplemented
    nothing = np.empty((len(x), 0), x.dtype), np.empty((len(x), 0), np.int64)
    _norms(x, norm, eps, x_hat)
    _experts(x_hat, *nothing, gate_up[None], down[None], gate_up, down, sums)
    return sums.sum(axis=0)


def moe_step(x, norm, router, bias, gate_up, down, shared_gate_up, shared_down, *, eps, **rules):
    """Norm, router and choice in one kernel, slices of every chosen expert's width in another."""
    x = contiguous(x)
    arrays = x, norm, router, gate_up, down, shared_gate_up, shared_down
    if not _ready(arrays):
        return NotImplemented
    options = options_of_select(len(router), **rules)
    offset = np.zeros(len(router), x.dtype) if bias is None or options[0] else contiguous(bias)
    k = rules["num_experts_per_tok"]
    x_hat, weights, indices = (
        np.empty_like(x),
        np.empty((len(x), k), x.dtype),
        np.empty((len(x), k), np.int64),
    )
    sums = np.empty((_slices(x), *x.shape), x.dtype)
    _route(x, norm, router, offset, *options, eps, x_hat, weights, indices)
    _experts(x_hat, weights, indices, gate_up, down, shared_gate_up, shared_down, sums)
    return sums.sum(axis=0), weights, indices


def _slices(x):
    """One for a single row, which one thread serves: a whole row of weights is read without gaps."""
    return 1 if len(x) == 1 else SLICES


def _ready(arrays):
    """Whether there are kernels for these arrays: of one dtype, and without gaps."""
    kind = arrays[0].dtype
    return kind.char in "fd" and all(array.dtype is kind and array.flags.c_contiguous for array in arrays)


@njit(fastmath=FASTMATH)
def _turn(x, cos, sin, interleaved):
    """RoPE in place: x (d_r,), pairs (x0, x1), .. or (x_j, x_{j + d_r/2})."""
    half = x.shape[0] // 2
    for i in range(half):
        a = 2 * i if interleaved else i
        b = a + 1 if interleaved else i + half
        x[a], x[b] = x[a] * cos[i] - x[b] * sin[i], x[a] * sin[i] + x[b] * cos[i]


@njit(fastmath=FASTMATH)
def _scores(keys, latents, b, start, p):
    """p[t, h] = keys[h] . latents[b, start + t], four columns at a time."""
    real = p.dtype.type
    size = keys.shape[1]
    whole = p.shape[0] // 4 * 4
    for t in range(0, whole, 4):
        at = start + t
        for h in range(keys.shape[0]):
            s0, s1, s2, s3 = real(0), real(0), real(0), real(0)
            for i in range(size):
                v = keys[h, i]
                s0 += v * latents[b, at, i]
                s1 += v * latents[b, at + 1, i]
                s2 += v * latents[b, at + 2, i]
                s3 += v * latents[b, at + 3, i]
            p[t, h], p[t + 1, h], p[t + 2, h], p[t + 3, h] = s0, s1, s2, s3
    for t in range(whole, p.shape[0]):
        for h in range(keys.shape[0]):
            s0 = real(0)
            for i in range(size):
                s0 += keys[h, i] * latents[b, start + t, i]
            p[t, h] = s0


@njit(fastmath=FASTMATH)
def _add_columns(p, latents, b, start, sums):
    """sums[h] = sum_t p[t, h] latents[b, start + t, :r], four columns at a time."""
    r = sums.shape[1]
    whole = p.shape[0] // 4 * 4
    for t in range(0, whole, 4):
        at = start + t
        for h in range(sums.shape[0]):
            p0, p1, p2, p3 = p[t, h], p[t + 1, h], p[t + 2, h], p[t + 3, h]
            for j in range(r):
                sums[h, j] += (p0 * latents[b, at, j] + p1 * latents[b, at + 1, j]) + (
                    p2 * latents[b, at + 2, j] + p3 * latents[b, at + 3, j]
                )
    for t in range(whole, p.shape[0]):
        for h in range(sums.shape[0]):
            for j in range(r):
                sums[h, j] += p[t, h] * latents[b, start + t, j]


@njit(fastmath=FASTMATH)
def _softmax_of_columns(p):
    """Each column of p (columns of the cache, heads) becomes its softmax."""
    real = p.dtype.type
    heads = p.shape[1]
    top, total = np.empty(heads, p.dtype), np.zeros(heads, p.dtype)
    for h in range(heads):
        top[h] = p[0, h]
    for t in range(1, p.shape[0]):
        for h in range(heads):
            top[h] = max(top[h], p[t, h])
    for t in range(p.shape[0]):
        for h in range(heads):
            p[t, h] = exp(p[t, h] - top[h])
            total[h] += p[t, h]
    for h in range(heads):
        total[h] = real(1) / total[h]
    for t in range(p.shape[0]):
        for h in range(heads):
            p[t, h] *= total[h]


@kernel(
    "(T[:, ::1], T[::1], T[:, ::1], T[::1], T[:, ::1], T[:, ::1], T[::1], T[:, ::1], T[:, ::1], T[:, :, ::1],"
    " T[:, ::1], T[:, ::1], T[:, ::1], int64, int64[::1], int64, T, T, T, boolean)",
    parallel_from=PARALLEL_FROM,
)
def _latent_attention(
    x,
    norm,
    q_a,
    q_a_norm,
    q_b,
    kv_a,
    kv_a_norm,
    kv_b,
    o_weight,
    latents,
    cos,
    sin,
    y,
    length,
    first,
    heads,
    scale,
    eps,
    latent_eps,
    interleaved,
):
    hidden, r = x.shape[1], kv_b.shape[1]
    d_r = latents.shape[2] - r
    d_v = o_weight.shape[1] // heads
    d_n = kv_b.shape[0] // heads - d_v
    for part in prange(PARTS):
        for b in range(share(part, len(x)), share(part + 1, len(x))):
            x_hat = np.empty(hidden, x.dtype)
            normalise(x[b], norm, eps, x_hat)
            q = np.empty(q_b.shape[0], x.dtype)
            if q_a.shape[0] > 0:
                low, low_hat = np.empty(q_a.shape[0], x.dtype), np.empty(q_a.shape[0], x.dtype)
                times(q_a, x_hat, low)
                normalise(low, q_a_norm, latent_eps, low_hat)
                times(q_b, low_hat, q)
            else:
                times(q_b, x_hat, q)
            new = np.empty(r + d_r, x.dtype)
            times(kv_a, x_hat, new)
            _turn(new[r:], cos[b], sin[b], interleaved)
            normalise(new[:r], kv_a_norm, latent_eps, latents[b, length, :r])
            latents[b, length, r:] = new[r:]

            keys = np.zeros((heads, r + d_r), x.dtype)  # [W_UK^T q_nope | q_rope], ready for a latent column
            for h in range(heads):
                of_head = q[h * (d_n + d_r) : (h + 1) * (d_n + d_r)]
                _turn(of_head[d_n:], cos[b], sin[b], interleaved)
                for i in range(d_n):
                    row, factor = h * (d_n + d_v) + i, of_head[i] * scale
                    for j in range(r):
                        keys[h, j] += factor * kv_b[row, j]
                for j in range(d_r):
                    keys[h, r + j] = of_head[d_n + j] * scale

            start = min(first[b], length)
            p = np.empty((length + 1 - start, heads), x.dtype)
            _scores(keys, latents, b, start, p)
            _softmax_of_columns(p)
            sums = np.zeros((heads, r), x.dtype)
            _add_columns(p, latents, b, start, sums)
            o = np.empty(heads * d_v, x.dtype)
            for h in range(heads):
                first_row = h * (d_n + d_v) + d_n
                times(kv_b[first_row : first_row + d_v], sums[h], o[h * d_v : (h + 1) * d_v])
            times(o_weight, o, y[b])


@kernel("(T[:, ::1], T[::1], T, T[:, ::1])", parallel_from=NEVER)
def _norms(x, norm, eps, x_hat):
    for b in range(len(x)):
        normalise(x[b], norm, eps, x_hat[b])


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1])", parallel_from=PARALLEL_FROM)
def _linear(x, weight, y):
    for part in prange(PARTS):
        times_rows(weight, share(part, len(weight)), share(part + 1, len(weight)), x, len(x), y)


@kernel(
    "(T[:, ::1], T[::1], T[:, ::1], T[::1], boolean, intp, intp, intp, T, T, boolean, T, T, T, T[:, ::1],"
    " T[:, ::1], int64[:, ::1])",
    parallel_from=NEVER,
)
def _route(
    x,
    norm,
    router,
    bias,
    softmax,
    n_group,
    topk_group,
    judged,
    lost,
    nothing,
    normalised,
    c,
    tiny,
    eps,
    x_hat,
    weights,
    indices,
):
    experts = len(router)
    logits, scores, choice = (
        np.empty(experts, x.dtype),
        np.empty(experts, x.dtype),
        np.empty(experts, x.dtype),
    )
    of_groups, kept = np.empty(n_group, x.dtype), np.empty(n_group, np.bool_)
    taken = np.empty(experts, np.bool_)
    for b in range(len(x)):
        normalise(x[b], norm, eps, x_hat[b])
        times(router, x_hat[b], logits)
        choose(
            logits,
            bias,
            softmax,
            n_group,
            topk_group,
            judged,
            lost,
            nothing,
            normalised,
            c,
            tiny,
            choice,
            taken,
            of_groups,
            kept,
            weights[b],
            indices[b],
            scores,
        )


@njit(fastmath=FASTMATH)
def _ffn_slice(gate_up, down, x, factors, rows, start, stop, gate_and_up, y):
    """y[b] += factors[b] W_down[:, cut] (silu(W_gate x[b]) * (W_up x[b]))[cut], cut = start:stop, b < rows.

    gate_and_up (rows or more, 2 width): room to work in.
    """
    real = x.dtype.type
    width = down.shape[1]
    times_rows(gate_up, start, stop, x, rows, gate_and_up)
    times_rows(gate_up, width + start, width + stop, x, rows, gate_and_up)
    # Slices, so that inner loops count from 0: an index that might be negative is not vectorised.
    for b in range(rows):
        h, up = gate_and_up[b, start:stop], gate_and_up[b, width + start : width + stop]
        for i in range(h.shape[0]):
            e = exp(-abs(h[i]))
            sigma = (real(1) if h[i] >= real(0) else e) / (real(1) + e)
            h[i] *= factors[b] * sigma * up[i]
    for o in range(down.shape[0]):
        w = down[o, start:stop]
        for b in range(rows):
            h = gate_and_up[b, start:stop]
            total = real(0)
            for i in range(w.shape[0]):
                total += w[i] * h[i]
            y[b, o] += total


@kernel(
    "(T[:, ::1], T[:, ::1], int64[:, ::1], T[:, :, ::1], T[:, :, ::1], T[:, ::1], T[:, ::1], T[:, :, ::1])",
    parallel_from=PARALLEL_FROM,
)
def _experts(x, choice_weights, indices, gate_up, down, shared_gate_up, shared_down, sums):
    real = x.dtype.type
    width, shared = down.shape[2], shared_down.shape[1]
    slices = len(sums)
    for part in prange(slices):
        sums[part] = real(0)
        room = np.empty((len(x), 2 * max(width, shared)), x.dtype)
        members, factors = np.empty(len(x), np.int64), np.ones(len(x), x.dtype)
        start, stop = part * shared // slices, (part + 1) * shared // slices
        _ffn_slice(shared_gate_up, shared_down, x, factors, len(x), start, stop, room, sums[part])
        start, stop = part * width // slices, (part + 1) * width // slices
        inputs, outputs = np.empty_like(x), np.empty_like(x)
        for e in range(down.shape[0]):  # its rows together, so that its weights are read once
            rows = 0
            for b in range(len(x)):
                for k in range(indices.shape[1]):
                    if indices[b, k] == e:
                        members[rows], factors[rows] = b, choice_weights[b, k]
                        inputs[rows] = x[b]
                        outputs[rows] = real(0)
                        rows += 1
            if rows:
                _ffn_slice(gate_up[e], down[e], inputs, factors, rows, start, stop, room, outputs)
                for n in range(rows):
                    for i in range(x.shape[1]):
                        sums[part, members[n], i] += outputs[n, i]
