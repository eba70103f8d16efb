"""One new token in a layer's attention: the steps of MLA in the absorbed form, each cut into pieces.

    project   x_hat = RMSNorm(x), [c_q | c | k_r] = [W_qa; W_kva] x_hat         cut by rows of the matrices
    absorb    q = W_qb RMSNorm(c_q), keys = [W_UK^T q_nope | RoPE(q_rope)]      cut by heads
    visit     the latents, once for all heads, with the softmax kept up to date   cut by columns
    gather    what the columns' pieces found is merged, o = W_UV of it          cut by heads
    leave     x += W_o o                                                        cut by rows of W_o

The heads stand side by side in lanes while latents pass: keys are written turned, (r + d_r, heads).
"""

import numpy as np

from tinygrad_ds.kernels.cpu.arithmetic import exp as exp_of_one
from tinygrad_ds.kernels.cpu.common import inner
from tinygrad_ds.kernels.cpu.lanes import BYTES, exp, larger, load, splat, store, where_less
from tinygrad_ds.kernels.cpu.memory import cube, matrix, vector
from tinygrad_ds.kernels.cpu.team import PIECES, cut
from tinygrad_ds.kernels.cpu.tiles import add_product, set_product
from tinygrad_ds.kernels.cpu.vectors import copy, normalise, times, turn_pairs

COLUMNS = 64  # visited at once: their latents are read a second time for the sums, from the nearest cache


@inner
def whole_lanes(count, like):
    """The next count that fills all lanes."""
    width = BYTES // like.itemsize
    return (count + width - 1) // width * width


@inner
def project(like, c, layer, piece):
    x = matrix(like, c.x, c.batch, c.hidden)
    x_hat, norm = np.empty_like(x), vector(like, layer.norm, c.hidden)
    for b in range(c.batch):
        normalise(x[b], norm, like.dtype.type(c.eps), x_hat[b])
    if c.r_q:
        start, stop = cut(piece, c.r_q), cut(piece + 1, c.r_q)
        q_a, low = matrix(like, layer.q_a, c.r_q, c.hidden), matrix(like, c.low, c.batch, c.r_q)
        times(q_a[start:stop], x_hat, low[:, start:stop])
    else:
        start, stop = cut(piece, c.hidden), cut(piece + 1, c.hidden)
        low = matrix(like, c.low, c.batch, c.hidden)
        for b in range(c.batch):
            copy(x_hat[b, start:stop], low[b, start:stop])
    size = c.r + c.d_r
    start, stop = cut(piece, size), cut(piece + 1, size)
    kv_a, new = matrix(like, layer.kv_a, size, c.hidden), matrix(like, c.new, c.batch, size)
    times(kv_a[start:stop], x_hat, new[:, start:stop])


@inner
def absorb(like, c, layer, number, first, piece):
    """Also writes the new latents, in the first piece."""
    real, size = like.dtype.type, c.r + c.d_r
    width = c.r_q if c.r_q else c.hidden
    low = matrix(like, c.low, c.batch, width)
    if c.r_q:
        low_hat, norm = np.empty_like(low), vector(like, layer.q_a_norm, c.r_q)
        for b in range(c.batch):
            normalise(low[b], norm, real(c.latent_eps), low_hat[b])
    else:
        low_hat = low
    cos, sin = matrix(like, c.cos, c.positions, c.d_r // 2), matrix(like, c.sin, c.positions, c.d_r // 2)
    start, stop, d = cut(piece, c.heads), cut(piece + 1, c.heads), c.d_n + c.d_r
    q = np.empty((c.batch, (stop - start) * d), like.dtype)
    times(
        matrix(like, layer.q_b, c.heads * d, width)[start * d : stop * d], low_hat, q[:, : (stop - start) * d]
    )
    kv_b = matrix(like, layer.kv_b, c.heads * (c.d_n + c.d_v), c.r)
    keys = cube(like, c.keys, c.batch, size, whole_lanes(c.heads, like))
    key = np.empty(c.r, like.dtype)
    for b in range(c.batch):
        at = max(c.length - first[b], 0)
        cos_b, sin_b = cos[at], sin[at]
        for h in range(start, stop):
            of_head = q[b, (h - start) * d : (h - start + 1) * d]
            q_nope, q_rope = of_head[: c.d_n], of_head[c.d_n :]
            turn_pairs(q_rope, cos_b, sin_b, c.interleaved)
            row = h * (c.d_n + c.d_v)
            _times_turned(kv_b[row : row + c.d_n], q_nope, key)
            scale = real(c.scale)
            for j in range(c.r):
                keys[b, j, h] = key[j] * scale
            for j in range(c.d_r):
                keys[b, c.r + j, h] = q_rope[j] * scale
    if piece == 0:
        new, norm = matrix(like, c.new, c.batch, size), vector(like, layer.kv_a_norm, c.r)
        for b in range(c.batch):
            column = latents_of(like, c, number, b)[c.length]
            normalise(new[b, : c.r], norm, real(c.latent_eps), column[: c.r])
            copy(new[b, c.r :], column[c.r :])
            at = max(c.length - first[b], 0)
            turn_pairs(column[c.r :], cos[at], sin[at], c.interleaved)


@inner
def latents_of(like, c, number, b):
    """The latents of a layer and a row of the batch: (capacity, r + d_r)."""
    size = (c.r + c.d_r) * c.capacity
    return matrix(like, c.latents + (number * c.batch + b) * size * like.itemsize, c.capacity, c.r + c.d_r)


@inner
def _times_turned(weight, x, y):
    """y = W^T x, four rows of W at a time."""
    y[:] = x.dtype.type(0)
    fours = weight.shape[0] // 4 * 4
    for o in range(0, fours, 4):
        w0, w1, w2, w3 = weight[o], weight[o + 1], weight[o + 2], weight[o + 3]
        x0, x1, x2, x3 = x[o], x[o + 1], x[o + 2], x[o + 3]
        for i in range(y.shape[0]):
            y[i] += (x0 * w0[i] + x1 * w1[i]) + (x2 * w2[i] + x3 * w3[i])
    for o in range(fours, weight.shape[0]):
        w, x0 = weight[o], x[o]
        for i in range(y.shape[0]):
            y[i] += x0 * w[i]


@inner
def visit(like, c, number, first, piece):
    """For every head: the largest score of the piece's columns, the sums of exponentials and of latents."""
    padded = whole_lanes(c.heads, like)
    keys = cube(like, c.keys, c.batch, c.r + c.d_r, padded)
    rows = cube(like, c.rows, PIECES * c.batch, 3, padded)
    sums = cube(like, c.sums, PIECES * c.batch, c.heads, c.r)
    scores = np.zeros((COLUMNS, padded), like.dtype)
    for b in range(c.batch):
        latents = latents_of(like, c, number, b)
        begin = min(first[b], c.length)
        count = c.length + 1 - begin
        found = piece * c.batch + b
        _visit(
            latents[begin + cut(piece, count) : begin + cut(piece + 1, count)],
            keys[b],
            scores,
            rows[found],
            sums[found],
        )


@inner
def _visit(latents, keys, scores, rows, sums):
    """rows (3, heads): the largest score, the sum, and by how much sums shrink where a larger one comes."""
    width = BYTES // sums.itemsize
    heads, r = sums.shape
    filled = (heads + width // 2 - 1) // (width // 2) * (width // 2)  # no head is beyond
    whole = r // width * width
    zero, nothing = splat(0, sums), splat(-np.inf, sums)
    rows[0], rows[1] = -np.inf, sums.dtype.type(0)
    sums[:] = sums.dtype.type(0)
    for t in range(0, latents.shape[0], COLUMNS):
        block = latents[t : min(t + COLUMNS, latents.shape[0])]
        s = scores[: block.shape[0]]
        set_product(block, keys[:, :filled], s[:, :filled])
        for lane in range(0, rows.shape[1], width):
            before = load(rows, 0, lane)
            m = before
            for n in range(s.shape[0]):
                m = larger(load(s, n, lane), m)
            base = where_less(nothing, m, m, zero)  # if all are -inf: -inf - -inf is NaN
            shrink = exp(before - base)
            total = load(rows, 1, lane) * shrink
            for n in range(s.shape[0]):
                p = exp(load(s, n, lane) - base)
                store(p, s, n, lane)
                total = total + p
            store(m, rows, 0, lane)
            store(total, rows, 1, lane)
            store(shrink, rows, 2, lane)
        if t:
            for h in range(heads):
                for j in range(r):
                    sums[h, j] *= rows[2, h]
        add_product(s[:, :heads].T, block[:, :whole], sums[:, :whole])
        for h in range(heads):
            for n in range(s.shape[0]):
                for j in range(whole, r):
                    sums[h, j] += s[n, h] * block[n, j]


@inner
def gather(like, c, layer, piece):
    real = like.dtype.type
    rows = cube(like, c.rows, PIECES * c.batch, 3, whole_lanes(c.heads, like))
    sums = cube(like, c.sums, PIECES * c.batch, c.heads, c.r)
    kv_b = matrix(like, layer.kv_b, c.heads * (c.d_n + c.d_v), c.r)
    o = matrix(like, c.o, c.batch, c.heads * c.d_v)
    mean = np.empty((c.batch, c.r), like.dtype)
    for h in range(cut(piece, c.heads), cut(piece + 1, c.heads)):
        for b in range(c.batch):
            top = rows[b, 0, h]
            for p in range(1, PIECES):
                top = max(top, rows[p * c.batch + b, 0, h])
            total = real(0)
            mean[b] = real(0)
            for p in range(PIECES):
                found = p * c.batch + b
                factor = exp_of_one(rows[found, 0, h] - top)
                total += factor * rows[found, 1, h]
                for j in range(c.r):
                    mean[b, j] += factor * sums[found, h, j]
            for j in range(c.r):
                mean[b, j] /= total
        first = h * (c.d_n + c.d_v) + c.d_n
        times(kv_b[first : first + c.d_v], mean, o[:, h * c.d_v : (h + 1) * c.d_v])


@inner
def leave(like, c, layer, piece):
    start, stop = cut(piece, c.hidden), cut(piece + 1, c.hidden)
    o_weight = matrix(like, layer.o, c.hidden, c.heads * c.d_v)
    y = np.empty((c.batch, stop - start), like.dtype)
    times(o_weight[start:stop], matrix(like, c.o, c.batch, c.heads * c.d_v), y[:, : stop - start])
    x = matrix(like, c.x, c.batch, c.hidden)
    for b in range(c.batch):
        for i in range(stop - start):
            x[b, start + i] += y[b, i]
