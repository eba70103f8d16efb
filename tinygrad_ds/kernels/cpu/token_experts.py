"""One new token in a layer's feed-forward part, dense or of experts, in steps cut into pieces.

    choose    x_hat = RMSNorm(x), the router's choice and weights               cut by rows of the batch
    widen     h = silu(W_gate x_hat) * (W_up x_hat), times the weight           cut by channels of h
    narrow    x += W_down h                                                     cut by rows of W_down

Rows of the batch that chose the same expert go through it together, so that its weights are read once, and
those of experts that nobody chose are not read at all.
"""

import numpy as np

from tinygrad_ds.kernels.cpu.arithmetic import exp
from tinygrad_ds.kernels.cpu.common import inner
from tinygrad_ds.kernels.cpu.memory import cube, matrix, vector
from tinygrad_ds.kernels.cpu.routing import choose
from tinygrad_ds.kernels.cpu.team import cut
from tinygrad_ds.kernels.cpu.vectors import copy, normalise, times


@inner
def route(like, c, layer, indices, weights, piece):
    """indices, weights (batch, K) of this layer."""
    real = like.dtype.type
    x, x_hat = matrix(like, c.x, c.batch, c.hidden), matrix(like, c.x_hat, c.batch, c.hidden)
    norm = vector(like, layer.mlp_norm, c.hidden)
    start, stop = cut(piece, c.batch), cut(piece + 1, c.batch)
    for b in range(start, stop):
        normalise(x[b], norm, real(c.eps), x_hat[b])
    if not layer.router or start == stop:
        return
    router = matrix(like, layer.router, c.experts, c.hidden)
    logits, scores = np.empty((stop - start, c.experts), like.dtype), np.empty(c.experts, like.dtype)
    bias = vector(like, layer.bias, c.experts) if layer.bias else np.zeros(c.experts, like.dtype)
    choice, taken = np.empty(c.experts, like.dtype), np.empty(c.experts, np.bool_)
    of_groups, kept = np.empty(c.n_group, like.dtype), np.empty(c.n_group, np.bool_)
    times(router, x_hat[start:stop], logits[:, : c.experts])
    for b in range(start, stop):
        choose(
            logits[b - start],
            bias,
            c.softmax != 0,
            c.n_group,
            c.topk_group,
            c.judged,
            real(c.lost),
            real(-np.inf),
            c.normalised != 0,
            real(c.factor),
            real(c.tiny),
            choice,
            taken,
            of_groups,
            kept,
            weights[b],
            indices[b],
            scores,
        )


@inner
def widen(like, c, layer, indices, weights, piece):
    x_hat = matrix(like, c.x_hat, c.batch, c.hidden)
    if layer.shared:
        gate_up = matrix(like, layer.shared_gate_up, 2 * layer.shared, c.hidden)
        h = matrix(like, c.h_shared, c.batch, layer.shared)
        start, stop = cut(piece, layer.shared), cut(piece + 1, layer.shared)
        _gated(x_hat, gate_up, start, stop, h[:, start:stop])
    if not layer.router:
        return
    gate_up = cube(like, layer.gate_up, c.experts, 2 * c.width, c.hidden)
    h = cube(like, c.h, c.batch, indices.shape[1], c.width)
    start, stop = cut(piece, c.width), cut(piece + 1, c.width)
    inputs, result = np.empty_like(x_hat), np.empty((c.batch, stop - start), like.dtype)
    members, slots = np.empty(c.batch, np.int64), np.empty(c.batch, np.int64)
    for e in range(c.experts):
        rows = _members(indices, e, members, slots)
        if not rows:
            continue
        for n in range(rows):
            copy(x_hat[members[n]], inputs[n])
        _gated(inputs[:rows], gate_up[e], start, stop, result[:rows, : stop - start])
        for n in range(rows):
            to, weight = h[members[n], slots[n]][start:stop], weights[members[n], slots[n]]
            for i in range(stop - start):
                to[i] = weight * result[n, i]


@inner
def narrow(like, c, layer, indices, piece):
    x = matrix(like, c.x, c.batch, c.hidden)
    start, stop = cut(piece, c.hidden), cut(piece + 1, c.hidden)
    y = np.empty((c.batch, stop - start), like.dtype)
    if layer.shared:
        down = matrix(like, layer.shared_down, c.hidden, layer.shared)
        times(down[start:stop], matrix(like, c.h_shared, c.batch, layer.shared), y[:, : stop - start])
        for b in range(c.batch):
            for i in range(stop - start):
                x[b, start + i] += y[b, i]
    if not layer.router:
        return
    down = cube(like, layer.down, c.experts, c.hidden, c.width)
    h = cube(like, c.h, c.batch, indices.shape[1], c.width)
    inputs = np.empty((c.batch, c.width), like.dtype)
    members, slots = np.empty(c.batch, np.int64), np.empty(c.batch, np.int64)
    for e in range(c.experts):
        rows = _members(indices, e, members, slots)
        if not rows:
            continue
        for n in range(rows):
            copy(h[members[n], slots[n]], inputs[n])
        times(down[e][start:stop], inputs[:rows], y[:rows, : stop - start])
        for n in range(rows):
            to = x[members[n]][start:stop]
            for i in range(stop - start):
                to[i] += y[n, i]


@inner
def _members(indices, e, members, slots):
    """Which rows of the batch chose expert e, and as which of their choices; how many there are."""
    rows = 0
    for b in range(indices.shape[0]):
        for k in range(indices.shape[1]):
            if indices[b, k] == e:
                members[rows], slots[rows] = b, k
                rows += 1
    return rows


@inner
def _gated(x, gate_up, start, stop, h):
    """h = silu(W_gate x) * (W_up x) for the channels from start to stop."""
    real = x.dtype.type
    width = gate_up.shape[0] // 2
    up = np.empty((x.shape[0], stop - start), x.dtype)[:, : stop - start]  # as strided as h may be
    times(gate_up[start:stop], x, h)
    times(gate_up[width + start : width + stop], x, up)
    for b in range(x.shape[0]):
        h_b, up_b = h[b], up[b]
        for i in range(stop - start):
            e = exp(-abs(h_b[i]))
            sigma = (real(1) if h_b[i] >= real(0) else e) / (real(1) + e)
            h_b[i] *= sigma * up_b[i]
