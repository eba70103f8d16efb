"""One new token for every row: what a network does when it decodes. No gradients here.

Reference forms; the fused twins are in kernels/cpu/decoding.py. The parts of a block that stand between two
additions to the residual stream are one function each, with the norm in front of them.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tinygrad_ds.device import Array, namespace, to_host
from tinygrad_ds.inference import inference
from tinygrad_ds.ops.activation import silu, softmax
from tinygrad_ds.ops.norm import rmsnorm
from tinygrad_ds.ops.rope import rope
from tinygrad_ds.ops.routing import router_selection


class LatentAttentionWeights(NamedTuple):
    """The weights of MLA as published; without a query rank q_a and q_a_norm are None and q_b is q_proj."""

    q_a: Array | None  # (r_q, hidden)
    q_a_norm: Array | None  # (r_q,)
    q_b: Array  # (h (d_n + d_r), r_q)
    kv_a: Array  # (r + d_r, hidden)
    kv_a_norm: Array  # (r,)
    kv_b: Array  # (h (d_n + d_v), r)
    o: Array  # (hidden, h d_v)


class BlockWeights(NamedTuple):
    """The weights of a block. A dense one has gate_up and down without a leading axis, and nothing behind."""

    norm: Array  # (hidden,)
    attention: LatentAttentionWeights
    mlp_norm: Array  # (hidden,)
    gate_up: Array  # (E, 2 width, hidden)
    down: Array  # (E, hidden, width)
    router: Array | None = None  # (E, hidden)
    bias: Array | None = None  # (E,)  what only the choice sees
    shared_gate_up: Array | None = None  # (2 width_s, hidden)
    shared_down: Array | None = None  # (hidden, width_s)


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """All that decoding reads. One object for one network, since twins note where the arrays are."""

    embedding: Array  # (vocab, hidden)
    blocks: tuple[BlockWeights, ...]
    norm: Array  # (hidden,)
    head: Array  # (vocab, hidden)
    notes: dict[str, Any] = field(default_factory=dict)  # what twins keep, by device


class TokenStep(NamedTuple):
    """What one new token of every row gives; the choices are those of the L layers that have experts."""

    y: Array  # (batch, hidden)  behind the final norm
    logits: Array  # (batch, vocab)
    weights: Array  # (L, batch, K)
    indices: Array  # (L, batch, K)


@inference
def token_step(
    ids, weights, latents, length, first, cos, sin, *, heads, scale, eps, latent_eps, interleaved, **rules
):
    """The network for one new column: ids (batch,) and a NetworkWeights -> TokenStep.

    latents (layers, batch, capacity, r + d_r) = [c_kv | RoPE(k_r)], of which the columns before `length` are
    filled and column `length` is written here; first (batch,), integers: the lowest column that a row sees;
    cos, sin (positions, d_r/2), of which a row reads that of max(length - first, 0); rules: the options of
    `router_selection`.
    """
    xp = namespace(latents)
    x, at = weights.embedding[ids], xp.maximum(length - xp.asarray(first), 0)
    angles = cos[at], sin[at]  # (batch, d_r/2)
    options = {
        "heads": heads,
        "scale": scale,
        "eps": eps,
        "latent_eps": latent_eps,
        "interleaved": interleaved,
    }
    choices = []
    for block, slot in zip(weights.blocks, latents, strict=True):
        x = x + latent_attention_step(x, block.norm, block.attention, slot, length, first, *angles, **options)
        if block.router is None:
            x = x + _ffn(rmsnorm.forward(x, block.mlp_norm, eps=eps)[0], block.gate_up, block.down)
        else:
            y, *choice = moe_step(x, block, eps=eps, **rules)
            x = x + y
            choices.append(choice)
    y = rmsnorm.forward(x, weights.norm, eps=eps)[0]
    if choices:
        chosen = [xp.stack(each) for each in zip(*choices)]
    else:
        chosen = [xp.empty((0, len(x), 0), x.dtype), xp.empty((0, len(x), 0), xp.int64)]
    return TokenStep(y, y @ weights.head.T, *chosen)


def latent_attention_step(
    x, norm, weights, latents, length, first, cos, sin, *, heads, scale, eps, latent_eps, interleaved
):
    """y = MLA(RMSNorm(x)) for one new column, in the absorbed form (DeepSeek-V2, section 2.1).

    x (batch, hidden), norm (hidden,), latents (batch, capacity, r + d_r) = [c_kv | RoPE(k_r)], of which the
    columns before `length` are filled and column `length` is written here; first (batch,), integers: the
    lowest column that a row sees; cos, sin (batch, d_r/2) at the rows' positions -> y (batch, hidden).

        q_lat = W_UK^T q_nope,   S_j = s (q_lat . c_j + q_rope . k_j),   o = W_UV sum_j softmax(S)_j c_j
    """
    xp = namespace(x)
    batch, r = len(x), weights.kv_b.shape[1]
    x = rmsnorm.forward(x, norm, eps=eps)[0]
    query = x
    if weights.q_a is not None:
        query = rmsnorm.forward(x @ weights.q_a.T, weights.q_a_norm, eps=latent_eps)[0]
    d_r, d_v = latents.shape[-1] - r, weights.o.shape[1] // heads
    d_n = weights.kv_b.shape[0] // heads - d_v
    q = (query @ weights.q_b.T).reshape(batch, heads, d_n + d_r)
    q_rope = rope.forward(q[..., d_n:], cos[:, None], sin[:, None], interleaved=interleaved)[0]
    new = x @ weights.kv_a.T  # (batch, r + d_r)
    latents[:, length, :r] = rmsnorm.forward(new[:, :r], weights.kv_a_norm, eps=latent_eps)[0]
    latents[:, length, r:] = rope.forward(new[:, r:], cos, sin, interleaved=interleaved)[0]

    w = weights.kv_b.reshape(heads, d_n + d_v, r)
    q_lat = xp.einsum("bhn,hnr->bhr", q[..., :d_n], w[:, :d_n])
    c, k_r = latents[:, : length + 1, :r], latents[:, : length + 1, r:]
    s = scale * (q_lat @ c.swapaxes(1, 2) + q_rope @ k_r.swapaxes(1, 2))  # (batch, heads, length + 1)
    first = xp.minimum(xp.asarray(first), length)  # a row sees its own column at least
    s = xp.where(xp.arange(length + 1) >= first[:, None, None], s, -xp.inf)
    o = xp.einsum("bhr,hvr->bhv", softmax.forward(s)[0] @ c, w[:, d_n:])
    return o.reshape(batch, heads * d_v) @ weights.o.T


@inference
def linear_step(x, weight):
    """y = W x, the head's logits. x (rows, hidden), weight (out, hidden) -> y (rows, out)."""
    return x @ weight.T


def moe_step(x, block, *, eps, **rules):
    """y = sum_k w_k FFN_{e_k}(x_hat) + FFN_shared(x_hat), x_hat = RMSNorm(x); only chosen experts are read.

    x (batch, hidden), the weights of a block, the options of `router_selection` -> y (batch, hidden), weights
    and indices (batch, K).
    """
    x = rmsnorm.forward(x, block.mlp_norm, eps=eps)[0]
    logits = x @ block.router.T
    chosen, _ = router_selection.forward(logits, *([] if block.bias is None else [block.bias]), **rules)
    if block.shared_gate_up is None:
        y = namespace(x).zeros_like(x)
    else:
        y = _ffn(x, block.shared_gate_up, block.shared_down)
    for row, experts in enumerate(to_host(chosen.indices).tolist()):
        for k, e in enumerate(experts):
            y[row] += chosen.weights[row, k] * _ffn(x[row : row + 1], block.gate_up[e], block.down[e])[0]
    return y, chosen.weights, chosen.indices


def _ffn(x: Array, gate_up: Array, down: Array) -> Array:
    """W_down (silu(W_gate x) * (W_up x))."""
    gate, up = namespace(x).split(x @ gate_up.T, 2, axis=-1)
    return (silu.forward(gate)[0] * up) @ down.T
