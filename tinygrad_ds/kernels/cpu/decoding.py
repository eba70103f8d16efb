"""Decoding, fused: one token for every row of a small batch.

The time goes into reading weights, so each is read once, row by row, for all rows of the batch while it is in
a register. One kernel does the whole attention of a layer in the absorbed form: a latent column is read once
for all heads. The experts' kernel cuts the width of every chosen expert into SLICES, one a thread, and adds
the slices in order.
"""

import numpy as np
from numba import njit, prange

from tinygrad_ds.kernels.cpu.arithmetic import exp
from tinygrad_ds.kernels.cpu.common import FASTMATH, PARTS, covered, kernel, share
from tinygrad_ds.kernels.cpu.layout import contiguous

SLICES = 4
PARALLEL_FROM = 1 << 18  # weights: a thread takes some 20 us to wake


def latent_attention_step(
    x, norm, weights, latents, length, first, cos, sin, *, heads, scale, eps, latent_eps, interleaved
):
    """One kernel for the layer; see ops/decoding.py."""
    given = [array for array in weights if array is not None]
    if not covered(x, norm, latents, *given) or not all(array.flags.c_contiguous for array in given):
        return NotImplemented
    if latents.strides[-1] != latents.itemsize or latents.strides[-2] != latents.shape[-1] * latents.itemsize:
        return NotImplemented
    q_a = weights.q_a if weights.q_a is not None else np.empty((0, x.shape[1]), x.dtype)
    q_a_norm = weights.q_a_norm if weights.q_a_norm is not None else np.empty(0, x.dtype)
    y = np.empty(x.shape, x.dtype)
    _latent_attention(
        contiguous(x),
        norm,
        q_a,
        q_a_norm,
        weights.q_b,
        weights.kv_a,
        weights.kv_a_norm,
        weights.kv_b,
        weights.o,
        latents,
        length,
        np.ascontiguousarray(first, dtype=np.int64),
        np.ascontiguousarray(cos),
        np.ascontiguousarray(sin),
        heads,
        scale,
        eps,
        latent_eps,
        interleaved,
        y,
    )
    return y


def norm_linear_step(x, norm, weight, *, eps):
    """The norm once, then rows of W in parts."""
    if not covered(x, norm, weight) or not weight.flags.c_contiguous:
        return NotImplemented
    x_hat = np.empty(x.shape, x.dtype)
    y = np.empty((len(x), len(weight)), x.dtype)
    _norm_linear(weight, contiguous(x), norm, eps, x_hat, y)
    return x_hat, y


def experts_step(x, choice_weights, indices, gate_up, down, shared_gate_up, shared_down):
    """Slices of every chosen expert's width."""
    arrays = (gate_up, down, shared_gate_up, shared_down)
    if not covered(x, choice_weights, *arrays) or not all(array.flags.c_contiguous for array in arrays):
        return NotImplemented
    sums = np.empty((SLICES, *x.shape), x.dtype)
    _experts(
        gate_up, down, shared_gate_up, shared_down, contiguous(x), contiguous(choice_weights), indices, sums
    )
    return sums.sum(axis=0)


@njit(fastmath=FASTMATH)
def _times(weight, start, stop, x, y):
    """y[o] = sum_i W[o, i] x[i] for o from start to stop, four rows at a time, side by side."""
    real = x.dtype.type
    size = x.shape[0]
    whole = start + (stop - start) // 4 * 4
    for o in range(start, whole, 4):
        s0, s1, s2, s3 = real(0), real(0), real(0), real(0)
        for i in range(size):
            v = x[i]
            s0 += weight[o, i] * v
            s1 += weight[o + 1, i] * v
            s2 += weight[o + 2, i] * v
            s3 += weight[o + 3, i] * v
        y[o], y[o + 1], y[o + 2], y[o + 3] = s0, s1, s2, s3
    for o in range(whole, stop):
        s0 = real(0)
        for i in range(size):
            s0 += weight[o, i] * x[i]
        y[o] = s0


@njit(fastmath=FASTMATH)
def _norm(x, weight, eps, y):
    """y = RMSNorm(x)."""
    real = x.dtype.type
    squares = real(0)
    for i in range(x.shape[0]):
        squares += x[i] * x[i]
    scale = real(1) / np.sqrt(squares / real(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        y[i] = x[i] * scale * weight[i]


@njit(fastmath=FASTMATH)
def _turn(x, cos, sin, interleaved):
    """RoPE in place: x (d_r,), pairs (x0, x1), .. or (x_j, x_{j + d_r/2})."""
    half = x.shape[0] // 2
    for i in range(half):
        a = 2 * i if interleaved else i
        b = a + 1 if interleaved else i + half
        x[a], x[b] = x[a] * cos[i] - x[b] * sin[i], x[a] * sin[i] + x[b] * cos[i]


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
    "(T[:, ::1], T[::1], T[:, ::1], T[::1], T[:, ::1], T[:, ::1], T[::1], T[:, ::1], T[:, ::1], T[:, :, :],"
    " int64, int64[::1], T[:, ::1], T[:, ::1], int64, T, T, T, boolean, T[:, ::1])",
    parallel_from=1024,
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
    length,
    first,
    cos,
    sin,
    heads,
    scale,
    eps,
    latent_eps,
    interleaved,
    y,
):
    hidden, r = x.shape[1], kv_b.shape[1]
    d_r = latents.shape[2] - r
    d_v = o_weight.shape[1] // heads
    d_n = kv_b.shape[0] // heads - d_v
    for part in prange(PARTS):
        for b in range(share(part, len(x)), share(part + 1, len(x))):
            x_hat = np.empty(hidden, x.dtype)
            _norm(x[b], norm, eps, x_hat)
            q = np.empty(q_b.shape[0], x.dtype)
            if q_a.shape[0] > 0:
                low, low_hat = np.empty(q_a.shape[0], x.dtype), np.empty(q_a.shape[0], x.dtype)
                _times(q_a, 0, len(low), x_hat, low)
                _norm(low, q_a_norm, latent_eps, low_hat)
                _times(q_b, 0, len(q), low_hat, q)
            else:
                _times(q_b, 0, len(q), x_hat, q)
            new = np.empty(r + d_r, x.dtype)
            _times(kv_a, 0, len(new), x_hat, new)
            _turn(new[r:], cos[b], sin[b], interleaved)
            _norm(new[:r], kv_a_norm, latent_eps, latents[b, length, :r])
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
            rows = latents[b]
            for t in range(start, length + 1):
                _times(keys, 0, heads, rows[t], p[t - start])
            _softmax_of_columns(p)
            sums = np.zeros((heads, r), x.dtype)
            for t in range(start, length + 1):
                for h in range(heads):
                    weight = p[t - start, h]
                    for j in range(r):
                        sums[h, j] += weight * rows[t, j]
            o = np.empty(heads * d_v, x.dtype)
            for h in range(heads):
                first_row = h * (d_n + d_v) + d_n
                _times(kv_b[first_row : first_row + d_v], 0, d_v, sums[h], o[h * d_v : (h + 1) * d_v])
            _times(o_weight, 0, hidden, o, y[b])


@kernel("(T[:, ::1], T[:, ::1], T[::1], T, T[:, ::1], T[:, ::1])", parallel_from=PARALLEL_FROM)
def _norm_linear(weight, x, norm, eps, x_hat, y):
    for b in range(len(x)):
        _norm(x[b], norm, eps, x_hat[b])
    for part in prange(PARTS):
        # A few rows of W at a time, that stay in the cache for all rows of the batch.
        for start in range(share(part, len(weight)), share(part + 1, len(weight)), 16):
            stop = min(start + 16, share(part + 1, len(weight)))
            for b in range(len(x)):
                _times(weight, start, stop, x_hat[b], y[b])


@njit(fastmath=FASTMATH)
def _ffn_slice(gate_up, down, x, factor, start, stop, gate_and_up, y):
    """y += factor W_down[:, start:stop] (silu(W_gate x) * (W_up x))[start:stop]. gate_and_up: room for it."""
    real = x.dtype.type
    width = down.shape[1]
    _times(gate_up, start, stop, x, gate_and_up)
    _times(gate_up, width + start, width + stop, x, gate_and_up)
    for i in range(start, stop):
        gate = gate_and_up[i]
        gate_and_up[i] = factor * gate * gate_and_up[width + i] / (real(1) + np.exp(-gate))
    for o in range(down.shape[0]):
        total = real(0)
        for i in range(start, stop):
            total += down[o, i] * gate_and_up[i]
        y[o] += total


@kernel(
    "(T[:, :, ::1], T[:, :, ::1], T[:, ::1], T[:, ::1], T[:, ::1], T[:, ::1], int64[:, :], T[:, :, ::1])",
    parallel_from=PARALLEL_FROM,
)
def _experts(gate_up, down, shared_gate_up, shared_down, x, choice_weights, indices, sums):
    real = x.dtype.type
    width, shared = down.shape[2], shared_down.shape[1]
    for part in prange(SLICES):
        y = sums[part]
        y[:] = real(0)
        room = np.empty(2 * max(width, shared), x.dtype)
        start, stop = part * width // SLICES, (part + 1) * width // SLICES
        for e in range(down.shape[0]):  # by expert, so that its weights are read for all rows at once
            for b in range(len(x)):
                for k in range(indices.shape[1]):
                    if indices[b, k] == e:
                        _ffn_slice(gate_up[e], down[e], x[b], choice_weights[b, k], start, stop, room, y[b])
        start, stop = part * shared // SLICES, (part + 1) * shared // SLICES
        for b in range(len(x)):
            _ffn_slice(shared_gate_up, shared_down, x[b], real(1), start, stop, room, y[b])
