"""Products of a matrix with one vector or a few, and the norm of a vector: what decoding kernels are made of.

For one vector, reading the matrix is what takes the time. It is read in four places at once, a row in each
quarter: the processor fetches ahead in every one of them, and memory gives up to 1.6 times as much as to one.
Several vectors go four at a time past two rows, so that what is loaded is used more than once.
Inner loops count from 0: with an index that might be negative numba does not vectorise them.
"""

import numpy as np

from tinygrad_ds.kernels.cpu.common import inner

BLOCK = 128  # rows of the matrix that stay in the cache while vectors pass


@inner
def times(weight, x, y):
    """y[b] = W x[b].  weight (out, d), x (rows, d), y (rows, out)."""
    rows = x.shape[0]
    fours = rows // 4 * 4
    block = BLOCK if rows > 4 else max(weight.shape[0], 1)
    for start in range(0, weight.shape[0], block):
        stop = min(start + block, weight.shape[0])
        for b in range(0, fours, 4):
            _times_four(weight[start:stop], x[b : b + 4], y[b : b + 4, start:stop])
        for b in range(fours, rows):
            _times_one(weight[start:stop], x[b], y[b, start:stop])


@inner
def _times_one(weight, x, y):
    real = x.dtype.type
    quarter = weight.shape[0] // 4
    for o in range(quarter):
        w0, w1, w2, w3 = weight[o], weight[quarter + o], weight[2 * quarter + o], weight[3 * quarter + o]
        y0, y1, y2, y3 = real(0), real(0), real(0), real(0)
        for i in range(x.shape[0]):
            x_i = x[i]
            y0 += w0[i] * x_i
            y1 += w1[i] * x_i
            y2 += w2[i] * x_i
            y3 += w3[i] * x_i
        y[o], y[quarter + o], y[2 * quarter + o], y[3 * quarter + o] = y0, y1, y2, y3
    for o in range(4 * quarter, weight.shape[0]):
        w, total = weight[o], real(0)
        for i in range(x.shape[0]):
            total += w[i] * x[i]
        y[o] = total


@inner
def _times_four(weight, x, y):
    real = x.dtype.type
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    half = weight.shape[0] // 2
    for o in range(half):
        v, w = weight[o], weight[half + o]
        v0, v1, v2, v3 = real(0), real(0), real(0), real(0)
        w0, w1, w2, w3 = real(0), real(0), real(0), real(0)
        for i in range(x.shape[1]):
            v_i, w_i = v[i], w[i]
            v0 += v_i * x0[i]
            v1 += v_i * x1[i]
            v2 += v_i * x2[i]
            v3 += v_i * x3[i]
            w0 += w_i * x0[i]
            w1 += w_i * x1[i]
            w2 += w_i * x2[i]
            w3 += w_i * x3[i]
        y[0, o], y[1, o], y[2, o], y[3, o] = v0, v1, v2, v3
        y[0, half + o], y[1, half + o], y[2, half + o], y[3, half + o] = w0, w1, w2, w3
    for o in range(2 * half, weight.shape[0]):
        for b in range(4):
            w, x_b, total = weight[o], x[b], real(0)
            for i in range(x.shape[1]):
                total += w[i] * x_b[i]
            y[b, o] = total


@inner
def copy(x, y):
    """y = x, of one size (numba's assignment of arrays brings its error messages into every kernel)."""
    for i in range(x.shape[0]):
        y[i] = x[i]


@inner
def normalise(x, weight, eps, y):
    """y = RMSNorm(x)."""
    real = x.dtype.type
    squares = real(0)
    for i in range(x.shape[0]):
        squares += x[i] * x[i]
    scale = real(1) / np.sqrt(squares / real(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        y[i] = x[i] * scale * weight[i]


@inner
def turn_pairs(x, cos, sin, interleaved):
    """RoPE in place: x (d_r,), pairs (x0, x1), .. or (x_j, x_{j + d_r/2})."""
    half = x.shape[0] // 2
    for i in range(half):
        a = 2 * i if interleaved else i
        b = a + 1 if interleaved else i + half
        x[a], x[b] = x[a] * cos[i] - x[b] * sin[i], x[a] * sin[i] + x[b] * cos[i]
