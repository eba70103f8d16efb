"""Decoding, fused: one call of one kernel takes a new token of every row through the whole network.

With few rows the time goes into reading weights, and into what is not reading: calls, and threads that wait.
So the addresses of all weights are noted once for a network, Python is entered once a token, and two threads
share every step of a layer and meet without sleeping (team.py). The steps stand in token_attention.py and
token_experts.py.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import PARTS, inner, kernel, share
from tinygrad_ds.kernels.cpu.lanes import BYTES
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.cpu.memory import matrix, records, vector, words
from tinygrad_ds.kernels.cpu.routing import options_of_select
from tinygrad_ds.kernels.cpu.team import PIECES, STEP, Team, claim, cut, finish, next_call, post, wait
from tinygrad_ds.kernels.cpu.token_attention import absorb, gather, leave, project, visit
from tinygrad_ds.kernels.cpu.token_experts import narrow, route, widen
from tinygrad_ds.kernels.cpu.vectors import copy, normalise, times
from tinygrad_ds.ops.decoding import TokenStep

NEVER = 1 << 62
MOST_ROWS = 16  # that `linear_step` serves better than BLAS
LINEAR_PARALLEL_FROM = 1 << 10
HELP_FROM = 1 << 18  # weights of a network: below, a helper comes too late to help

# What a layer is, and what a call is: addresses of arrays, sizes, and what the rules come down to.
_WEIGHTS = (
    "norm q_a q_a_norm q_b kv_a kv_a_norm kv_b o mlp_norm router bias gate_up down shared_gate_up shared_down"
)
_SIZES = "layers hidden heads r_q r d_n d_r d_v experts width widest chosen vocab interleaved"
_RULES = "softmax n_group topk_group judged normalised"
_GIVEN = "first latents cos sin indices weights y logits batch length capacity positions step"
_ROOM = "x x_hat low new keys rows sums o h h_shared"
LAYER = np.dtype([(name, np.int64) for name in f"{_WEIGHTS} shared place".split()])
CALL = np.dtype(
    [(name, np.int64) for name in f"table embedding norm head {_SIZES} {_RULES} {_GIVEN} {_ROOM}".split()]
    + [(name, np.float64) for name in "scale eps latent_eps lost factor tiny".split()]
)


class Network(NamedTuple):
    """The records of one network, with all arrays whose addresses they hold."""

    call: np.ndarray  # (1,) CALL
    address: int
    layers: np.ndarray  # (layers,) LAYER
    arrays: list[np.ndarray]
    experts: int  # layers of experts
    chosen: int  # experts of a token
    room: int  # numbers of a row to work in
    helped: bool


def token_step(ids, weights, latents, length, first, cos, sin, **options):
    """One kernel for the network; see ops/decoding.py."""
    network = _network(weights, options)
    if network is None or not latents.flags.c_contiguous or latents.dtype != weights.embedding.dtype:
        return NotImplemented
    batch, (vocab, hidden), kind = len(ids), weights.head.shape, latents.dtype
    chosen = network.experts, batch, network.chosen
    step = TokenStep(
        np.empty((batch, hidden), kind),
        np.empty((batch, vocab), kind),
        np.empty(chosen, kind),
        np.empty(chosen, np.int64),
    )
    room = np.empty(batch * network.room, kind)
    arrays = contiguous(np.asarray(ids, np.int64)), contiguous(np.asarray(first, np.int64)), latents, cos, sin

    def work(board, shared):
        _decode(room, board, shared, network.address, length, *arrays, *step)

    team = _team(kind)
    if network.helped:
        team.run(work)
    else:
        work(*team.alone())
    return step


def linear_step(x, weight):
    """Rows of W in parts; many rows of x are better served by BLAS."""
    x = contiguous(x)
    if len(x) > MOST_ROWS or not _ready([x, weight]):
        return NotImplemented
    y = np.empty((len(x), len(weight)), x.dtype)
    _linear(x, weight, y)
    return y


def _ready(arrays):
    """Whether there are kernels for these arrays: of one dtype, and without gaps."""
    kind = arrays[0].dtype
    return kind.char in "fd" and all(array.dtype is kind and array.flags.c_contiguous for array in arrays)


def _network(weights, options):
    """The records of `weights` under `options`, made when first asked for; None if not covered."""
    found = weights.notes.get("cpu")
    if found is None or found[0] != options:
        found = weights.notes["cpu"] = options, _noted(weights, **options)
    return found[1]


def _noted(weights, *, heads, scale, eps, latent_eps, interleaved, **rules):
    call, layers = np.zeros(1, CALL), np.zeros(len(weights.blocks), LAYER)
    arrays = [weights.embedding, weights.norm, weights.head]

    def note(record, name, array):
        if array is not None:
            arrays.append(array)
            record[name] = array.ctypes.data

    (vocab, hidden), a = weights.head.shape, weights.blocks[0].attention
    r, kind = a.kv_b.shape[1], weights.embedding.dtype
    d_r, d_v = len(a.kv_a) - r, a.o.shape[1] // heads
    sizes = {
        "layers": len(layers),
        "experts": 0,
        "hidden": hidden,
        "vocab": vocab,
        "heads": heads,
        "r": r,
        "d_r": d_r,
    }
    sizes |= {"r_q": 0 if a.q_a is None else len(a.q_a), "d_v": d_v, "d_n": len(a.kv_b) // heads - d_v}
    experts, widest = 0, 1
    for layer, block in zip(layers, weights.blocks):
        note(layer, "norm", block.norm)
        note(layer, "mlp_norm", block.mlp_norm)
        for name, array in block.attention._asdict().items():
            note(layer, name, array)
        if block.router is None:
            note(layer, "shared_gate_up", block.gate_up)
            note(layer, "shared_down", block.down)
            layer["shared"] = block.down.shape[1]
        else:
            for name in ("router", "gate_up", "down", "shared_gate_up", "shared_down"):
                note(layer, name, getattr(block, name))
            if rules["scoring_func"] != "softmax":
                note(layer, "bias", block.bias)
            layer["shared"] = 0 if block.shared_down is None else block.shared_down.shape[1]
            layer["place"] = experts
            experts += 1
            sizes |= {"experts": len(block.router), "width": block.down.shape[2]}
        widest = max(widest, int(layer["shared"]))
    if not _ready(arrays):
        return None
    chosen = rules["num_experts_per_tok"] if experts else 0
    sizes |= {"widest": widest, "chosen": chosen, "interleaved": interleaved}
    reals = {"scale": scale, "eps": eps, "latent_eps": latent_eps}
    if experts:
        names = "softmax n_group topk_group judged lost nothing normalised factor tiny".split()
        settled = dict(zip(names, options_of_select(sizes["experts"], **rules), strict=True))
        del settled["nothing"]
        sizes |= settled
    for name, value in (sizes | reals).items():
        call[name] = value
    places = {"embedding": weights.embedding, "norm": weights.norm, "head": weights.head, "table": layers}
    for name, array in places.items():
        call[name] = array.ctypes.data
    place = 0
    for name, size in _room(sizes, kind).items():
        call[name] = place
        place += -(-size // 16) * 16
    helped = sum(array.size for array in arrays) >= HELP_FROM
    return Network(call, call.ctypes.data, layers, arrays, experts, chosen, place, helped)


def _room(s, kind):
    """How many numbers a row of the batch takes in each array that the steps hand on to one another."""
    width, latent = BYTES // kind.itemsize, s["r"] + s["d_r"]
    lanes = -(-s["heads"] // width) * width
    return {
        "x": s["hidden"],
        "x_hat": s["hidden"],
        "low": s["r_q"] or s["hidden"],
        "new": latent,
        "keys": latent * lanes,
        "rows": PIECES * 3 * lanes,
        "sums": PIECES * s["heads"] * s["r"],
        "o": s["heads"] * s["d_v"],
        "h": s["chosen"] * s.get("width", 0),
        "h_shared": s["widest"],
    }


@cache
def _team(kind):
    """The two threads for one dtype."""
    nothing, whole = np.empty(0, kind), np.empty(0, np.int64)
    row, cube, latents = (np.empty((0,) * axes, kind) for axes in (2, 3, 4))
    arrays = whole, whole, latents, row, row, row, row, cube, np.empty((0, 0, 0), np.int64)

    def serve(board, shared):
        _decode(nothing, board, shared, 0, 0, *arrays)

    return Team(CALL, serve)


STEPS = 8  # of a layer

_ARRAYS = "int64[::1], int64[::1], T[:, :, :, ::1], T[:, ::1], T[:, ::1]"
_RESULTS = "T[:, ::1], T[:, ::1], T[:, :, ::1], int64[:, :, ::1]"


@kernel(f"(T[::1], int64[::1], int64, int64, int64, {_ARRAYS}, {_RESULTS})", NEVER)
def _decode(
    room,
    board,
    shared,
    network,
    length,
    ids,
    first,
    latents,
    cos,
    sin,
    y,
    logits,
    weights,
    indices,
):
    """A call; or, without a network, help with calls as long as they come."""
    calls, common, like = np.empty(1, CALL), records(CALL, shared, 1), room
    last, own = np.int64(0), np.int64(0 if network else 1)
    while True:
        if network:
            calls[0] = records(CALL, network, 1)[0]
            c = calls[0]
            c.length, c.batch, c.capacity, c.positions = length, len(ids), latents.shape[2], len(cos)
            c.first, c.latents = first.ctypes.data, latents.ctypes.data
            c.cos, c.sin, c.y, c.logits = cos.ctypes.data, sin.ctypes.data, y.ctypes.data, logits.ctypes.data
            c.weights, c.indices, c.step = weights.ctypes.data, indices.ctypes.data, board[STEP]
            start, by = room.ctypes.data, c.batch * room.itemsize
            c.x, c.x_hat, c.low, c.new = start, start + c.x_hat * by, start + c.low * by, start + c.new * by
            c.keys, c.rows, c.sums = start + c.keys * by, start + c.rows * by, start + c.sums * by
            c.o, c.h, c.h_shared = start + c.o * by, start + c.h * by, start + c.h_shared * by
            x, embedding = matrix(like, c.x, c.batch, c.hidden), matrix(like, c.embedding, c.vocab, c.hidden)
            for b in range(c.batch):
                copy(embedding[ids[b]], x[b])
            post(board, common, calls)
        else:
            number = next_call(board, common, calls, last)
            if number == last:
                break
            last = number
        c = calls[0]
        for k in range(STEPS * c.layers + 1):
            step = c.step + k + 1
            for other in range(PIECES):
                piece = (own + other) % PIECES
                if not claim(board, step, piece):
                    continue
                layer = records(LAYER, c.table, c.layers)[min(k // STEPS, c.layers - 1)]
                what, number = k % STEPS if k < STEPS * c.layers else STEPS, k // STEPS
                chosen = c.batch * c.chosen
                taken = words(c.indices + layer.place * chosen * 8, chosen).reshape((c.batch, c.chosen))
                given = matrix(like, c.weights + layer.place * chosen * like.itemsize, c.batch, c.chosen)
                if what == 0:
                    project(like, c, layer, piece)
                elif what == 1:
                    absorb(like, c, layer, number, words(c.first, c.batch), piece)
                elif what == 2:
                    visit(like, c, number, words(c.first, c.batch), piece)
                elif what == 3:
                    gather(like, c, layer, piece)
                elif what == 4:
                    leave(like, c, layer, piece)
                elif what == 5:
                    route(like, c, layer, taken, given, piece)
                elif what == 6:
                    widen(like, c, layer, taken, given, piece)
                elif what == 7:
                    narrow(like, c, layer, taken, piece)
                else:
                    _finish(like, c, piece)
                finish(board)
            wait(board, step)
        if network:
            board[STEP] = c.step + STEPS * c.layers + 1
            break


@inner
def _finish(like, c, piece):
    """The final norm and the head's logits, cut by rows of the head."""
    x, norm = matrix(like, c.x, c.batch, c.hidden), vector(like, c.norm, c.hidden)
    x_hat = np.empty_like(x)
    for b in range(c.batch):
        normalise(x[b], norm, like.dtype.type(c.eps), x_hat[b])
    if piece == 0:
        y = matrix(like, c.y, c.batch, c.hidden)
        for b in range(c.batch):
            copy(x_hat[b], y[b])
    start, stop = cut(piece, c.vocab), cut(piece + 1, c.vocab)
    head, logits = matrix(like, c.head, c.vocab, c.hidden), matrix(like, c.logits, c.batch, c.vocab)
    times(head[start:stop], x_hat, logits[:, start:stop])


@kernel("(T[:, ::1], T[:, ::1], T[:, ::1])", LINEAR_PARALLEL_FROM)
def _linear(x, weight, y):
    for part in prange(PARTS):
        start, stop = share(part, len(weight)), share(part + 1, len(weight))
        times(weight[start:stop], x, y[:, start:stop])
