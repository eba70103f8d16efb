"""One new token for every row on the device: products by cuBLAS, decoding.cu and the other kernels between.

The host reads nothing here; sampling reads the logits.
"""

import cupy
import numpy as np

from tinygrad_ds.kernels.cuda.common import REAL, blocks, contiguous, launch
from tinygrad_ds.kernels.cuda.experts import experts_in, experts_out
from tinygrad_ds.kernels.cuda.indexing import embedding
from tinygrad_ds.kernels.cuda.norm import rmsnorm
from tinygrad_ds.kernels.cuda.rope import rope
from tinygrad_ds.kernels.cuda.routing import expert_order, router_selection
from tinygrad_ds.kernels.cuda.swiglu import swiglu
from tinygrad_ds.ops.decoding import TokenStep

WIDEST = 32 * 16  # numbers of a latent whose sums still go in registers


def token_step(
    ids, weights, latents, length, first, cos, sin, *, heads, scale, eps, latent_eps, interleaved, **rules
):
    kind, r = latents.dtype, weights.blocks[0].attention.kv_b.shape[1]
    if kind.name not in REAL or not ids.size or r > WIDEST:
        return NotImplemented
    x = embedding(weights.embedding, ids)[0]
    at = cupy.asarray(np.maximum(length - np.asarray(first), 0))
    angles, first = (cos[at], sin[at]), cupy.asarray(first, dtype=cupy.int64)
    options = {"heads": heads, "scale": scale, "latent_eps": latent_eps, "interleaved": interleaved}
    choices = []
    for block, slot in zip(weights.blocks, latents, strict=True):
        normed = rmsnorm(x, block.norm, eps=eps)[0]
        x = x + _attention(normed, block.attention, slot, length, first, *angles, **options)
        normed = rmsnorm(x, block.mlp_norm, eps=eps)[0]
        if block.router is None:
            x = x + _ffn(normed, block.gate_up, block.down)
        else:
            y, *choice = _experts(normed, block, rules)
            x = x + y
            choices.append(choice)
    y = rmsnorm(x, weights.norm, eps=eps)[0]
    if choices:
        chosen = [cupy.stack(each) for each in zip(*choices)]
    else:
        chosen = [cupy.empty((0, len(x), 0), kind), cupy.empty((0, len(x), 0), cupy.int64)]
    return TokenStep(y, y @ weights.head.T, *chosen)


def _attention(x, weights, latents, length, first, cos, sin, *, heads, scale, latent_eps, interleaved):
    """MLA of x (batch, hidden), already normed; writes column `length` of latents (batch, capacity, ..)."""
    batch, r, kind = len(x), weights.kv_b.shape[1], x.dtype
    query = x
    if weights.q_a is not None:
        query = rmsnorm(x @ weights.q_a.T, weights.q_a_norm, eps=latent_eps)[0]
    d_r, d_v = latents.shape[-1] - r, weights.o.shape[1] // heads
    d_n = weights.kv_b.shape[0] // heads - d_v
    projected = (query @ weights.q_b.T).reshape(batch, heads, d_n + d_r)
    w = weights.kv_b.reshape(heads, d_n + d_v, r)
    q = cupy.empty((batch, heads, r + d_r), kind)
    q[..., :r] = (projected[..., :d_n].swapaxes(0, 1) @ w[:, :d_n]).swapaxes(0, 1)
    q[..., r:] = rope(projected[..., d_n:], cos[:, None], sin[:, None], interleaved=interleaved)[0]

    row_step, sizes = latents.strides[0] // latents.itemsize, (r, d_r)
    arguments: tuple = (
        x @ weights.kv_a.T,
        weights.kv_a_norm,
        contiguous(cos),
        contiguous(sin),
        latents,
        row_step,
    )
    numbers = length, *sizes, int(interleaved), float(latent_eps)
    constants = (("LATENT_COLUMNS", blocks(r, 32)),)
    launch("decoding.append", (batch,), (128,), *arguments, *numbers, dtype=kind, constants=constants)
    o = cupy.empty((batch, heads, r), kind)
    room = (r + d_r + 4 * r + 8) * kind.itemsize
    arguments = q, latents, first, o, row_step, length + 1, *sizes, float(scale)
    launch(
        "decoding.attend", (heads, batch), (128,), *arguments, dtype=kind, constants=constants, shared=room
    )
    o = (o.swapaxes(0, 1) @ w[:, d_n:].swapaxes(1, 2)).swapaxes(0, 1)  # (batch, heads, d_v)
    return o.reshape(batch, heads * d_v) @ weights.o.T


def _experts(x, block, rules):
    """Routed and shared experts of x (batch, hidden), already normed; weights and indices (batch, K) too."""
    biases = [] if block.bias is None else [block.bias]
    chosen, _ = router_selection(x @ block.router.T, *biases, **rules)
    offsets, position = expert_order(chosen.indices, num_experts=len(block.router))
    gate_up, _ = experts_in(x, block.gate_up, position, offsets)
    y, _ = experts_out(gate_up, chosen.weights, block.down, position, offsets)
    if block.shared_gate_up is not None:
        y = y + _ffn(x, block.shared_gate_up, block.shared_down)
    return y, chosen.weights, chosen.indices


def _ffn(x, gate_up, down):
    """W_down (silu(W_gate x) * (W_up x))."""
    gate, up = cupy.split(x @ gate_up.T, 2, axis=-1)
    return swiglu(gate, up)[0] @ down.T
