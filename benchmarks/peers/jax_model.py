"""The bench model in JAX, with what makes it fast on a CPU.

- Rows sorted by expert are cut into blocks of one expert each, so that experts are one product of blocks.
- Where the gradient of a gather is itself a gather or a product, it is written so: XLA adds scattered rows
  up one at a time.
- Decoding reads latents, in the absorbed form, and for a single row the weights of its experts only.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128  # rows of one expert that are multiplied at a time


def rmsnorm(x, weight, eps=1e-6):
    """x / rms(x) * weight."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope(x, cos, sin):
    """Pairs (x0, x1), (x2, x3).. turned; the result has first halves first, for queries and keys alike."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def angles(config, positions):
    """cos and sin (time, d_r/2) of some positions."""
    d_r = config["qk_rope_head_dim"]
    turns = positions[:, None] / config["rope_theta"] ** (jnp.arange(0, d_r, 2) / d_r)
    return jnp.cos(turns), jnp.sin(turns)


def swiglu(x, gate_up, down):
    """FFN(x) with gate and up in one product."""
    gate, up = jnp.split(x @ gate_up.T, 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ down.T


@jax.custom_vjp
def take(x, index, back):
    """x[index]. back (rows of x, K): where copies of a row are, so that its gradient is a gather too."""
    return x[index]


take.defvjp(
    lambda x, index, back: (x[index], back),
    lambda back, g: (g[back].sum(axis=1), None, None),
)


@jax.custom_vjp
def weights_of(stack, expert):
    """stack[expert] (blocks, ..), whose gradient is one product with the blocks' experts."""
    return stack[expert]


def _weights_of_backward(saved, g):
    expert, count = saved
    return (count.T @ g.reshape(len(expert), -1)).reshape(count.shape[1], *g.shape[1:]), None


weights_of.defvjp(
    lambda stack, expert: (stack[expert], (expert, jax.nn.one_hot(expert, len(stack)))),
    _weights_of_backward,
)


def route(config, x, layer):
    """The experts of every token: indices and weights (tokens, K)."""
    groups, kept = config["n_group"], config["topk_group"]
    scores = jax.nn.sigmoid(x @ layer["router"].T)  # (tokens, E)
    choice = lax.stop_gradient(scores).reshape(len(x), groups, -1)
    best_two = lax.top_k(choice, 2)[0].sum(axis=-1)
    keep = jax.nn.one_hot(lax.top_k(best_two, kept)[1], groups).sum(axis=1)  # (tokens, groups)
    choice = jnp.where(keep[..., None] > 0, choice, -jnp.inf).reshape(scores.shape)
    indices = lax.top_k(choice, config["num_experts_per_tok"])[1]
    weights = jnp.take_along_axis(scores, indices, axis=1)
    weights /= weights.sum(axis=1, keepdims=True) + 1e-20
    return indices, weights * config["routed_scaling_factor"]


def experts(config, x, layer):
    """sum_k w_k FFN_{e_k}(x), rows sorted by expert into blocks that each belong to one."""
    count, k, tokens = config["n_routed_experts"], config["num_experts_per_tok"], len(x)
    indices, weights = route(config, x, layer)
    hot = jax.nn.one_hot(indices.reshape(-1), count, dtype=jnp.int32)  # (tokens K, E)
    rank = ((jnp.cumsum(hot, axis=0) - 1) * hot).sum(axis=1)
    blocks = -(-hot.sum(axis=0) // BLOCK)  # of each expert
    ends = jnp.cumsum(blocks)
    slot = ((ends - blocks)[indices.reshape(-1)] * BLOCK + rank).reshape(tokens, k)
    total = tokens * k // BLOCK + count
    token = jnp.zeros(total * BLOCK, jnp.int32).at[slot].set(jnp.arange(tokens)[:, None], unique_indices=True)
    expert = jnp.minimum(jnp.searchsorted(ends, jnp.arange(total), side="right"), count - 1)

    rows = take(x, token, slot).reshape(total, BLOCK, -1)
    gate_up = jnp.einsum("bnd,bod->bno", rows, weights_of(layer["gate_up"], expert))
    gate, up = jnp.split(gate_up, 2, axis=-1)
    made = jnp.einsum("bni,bdi->bnd", jax.nn.silu(gate) * up, weights_of(layer["down"], expert))
    return combine(made.reshape(total * BLOCK, -1), weights, slot, token)


@jax.custom_vjp
def combine(made, weights, slot, token):
    """sum_k weights[n, k] made[slot[n, k]]."""
    return jnp.einsum("nkd,nk->nd", made[slot], weights)


def _combine_backward(saved, g):
    made, weights, slot, token = saved
    of_row = jnp.zeros(len(made)).at[slot].set(weights, unique_indices=True)  # 0 where a block is padded
    return g[token] * of_row[:, None], jnp.einsum("nkd,nd->nk", made[slot], g), None, None


combine.defvjp(lambda *inputs: (combine(*inputs), inputs), _combine_backward)


def queries(config, layer, x, cos, sin):
    """q_nope and q_rope (batch, time, h, ..) of normed x."""
    q = rmsnorm(x @ layer["q_a"].T, layer["q_a_norm"]) @ layer["q_b"].T
    q = q.reshape(*x.shape[:2], config["num_attention_heads"], -1)
    q_nope, q_rope = jnp.split(q, [config["qk_nope_head_dim"]], axis=-1)
    return q_nope, rope(q_rope, cos[:, None], sin[:, None])


def latents(config, layer, x, cos, sin):
    """c_kv (batch, time, r) and k_r (batch, time, d_r) of normed x."""
    c, k_r = jnp.split(x @ layer["kv_a"].T, [config["kv_lora_rank"]], axis=-1)
    return rmsnorm(c, layer["kv_a_norm"]), rope(k_r, cos, sin)


def attention(config, layer, x, cos, sin):
    """MLA of whole rows: y (batch, time, hidden), and the latents that decoding keeps."""
    batch, t, _ = x.shape
    h, d_n = config["num_attention_heads"], config["qk_nope_head_dim"]
    q = jnp.concatenate(queries(config, layer, x, cos, sin), axis=-1)
    c_kv, k_r = latents(config, layer, x, cos, sin)
    k_nope, v = jnp.split((c_kv @ layer["kv_b"].T).reshape(batch, t, h, -1), [d_n], axis=-1)
    k = jnp.concatenate([k_nope, jnp.broadcast_to(k_r[:, :, None], (batch, t, h, k_r.shape[-1]))], axis=-1)
    s = jnp.einsum("bthd,bshd->bhts", q / math.sqrt(q.shape[-1]), k)
    s = jnp.where(jnp.tril(jnp.ones((t, t), bool)), s, -jnp.inf)
    o = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(s, axis=-1), v)
    return o.reshape(batch, t, -1) @ layer["o"].T, jnp.concatenate([c_kv, k_r], axis=-1)


def attention_step(config, layer, x, cache, length, cos, sin):
    """MLA of one new column over latents (batch, capacity, r + d_r), in the absorbed form."""
    h, d_n, r = config["num_attention_heads"], config["qk_nope_head_dim"], config["kv_lora_rank"]
    q_nope, q_rope = queries(config, layer, x, cos, sin)
    new = jnp.concatenate(latents(config, layer, x, cos, sin), axis=-1)
    cache = lax.dynamic_update_slice(cache, new, (0, length, 0))
    w = layer["kv_b"].reshape(h, -1, r)
    q = jnp.concatenate([jnp.einsum("bthn,hnr->bhr", q_nope, w[:, :d_n]), q_rope[:, 0]], axis=-1)
    s = jnp.einsum("bhr,bsr->bhs", q, cache) / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1])
    p = jax.nn.softmax(jnp.where(jnp.arange(cache.shape[1]) <= length, s, -jnp.inf), axis=-1)
    o = jnp.einsum("bhs,bsr,hvr->bhv", p, cache[..., :r], w[:, d_n:])
    return o.reshape(len(x), 1, -1) @ layer["o"].T, cache


def experts_step(config, x, layer):
    """`experts` for a few tokens: the weights that each one chose, or all where most of them are chosen."""
    indices, weights = route(config, x, layer)
    if indices.size < config["n_routed_experts"]:
        chosen = [[expert_of(x[n], layer, e) for e in indices[n]] for n in range(len(x))]
        return jnp.stack([weights[n] @ jnp.stack(row) for n, row in enumerate(chosen)])
    of_expert = (jax.nn.one_hot(indices, config["n_routed_experts"]) * weights[..., None]).sum(axis=1)
    gate, up = jnp.split(jnp.einsum("nd,eod->eno", x, layer["gate_up"]), 2, axis=-1)
    return jnp.einsum("eni,edi->nd", jax.nn.silu(gate) * up * of_expert.T[..., None], layer["down"])


def expert_of(x, layer, e):
    """FFN_e of one token."""
    gate_up, down = (lax.dynamic_index_in_dim(layer[name], e, keepdims=False) for name in ("gate_up", "down"))
    return swiglu(x, gate_up, down)


def feed_forward(config, layer, y, of_experts):
    """FFN of normed y (batch, time, hidden): dense, or experts and the shared one."""
    if "mlp" in layer:
        return swiglu(y, *layer["mlp"])
    flat = y.reshape(-1, y.shape[-1])
    return (of_experts(config, flat, layer) + swiglu(flat, *layer["shared"])).reshape(y.shape)


def hidden(config, params, ids):
    """ids (batch, time) -> h (batch, time, hidden) after the final norm, and the latents of every layer."""
    x, kept = params["embed"][ids], []
    cos, sin = angles(config, jnp.arange(ids.shape[1]))
    for layer in params["layers"]:
        y, made = attention(config, layer, rmsnorm(x, layer["norm_1"]), cos, sin)
        x = x + y
        x = x + feed_forward(config, layer, rmsnorm(x, layer["norm_2"]), experts)
        kept.append(made)
    return rmsnorm(x, params["norm"]), kept


def decode_step(config, params, caches, ids, length):
    """The most probable next token of ids (batch, 1) behind `length` columns, and the caches with it."""
    x, filled = params["embed"][ids], []
    cos, sin = angles(config, length[None])
    for layer, cache in zip(params["layers"], caches, strict=True):
        y, cache = attention_step(config, layer, rmsnorm(x, layer["norm_1"]), cache, length, cos, sin)
        x = x + y
        x = x + feed_forward(config, layer, rmsnorm(x, layer["norm_2"]), experts_step)
        filled.append(cache)
    return (rmsnorm(x, params["norm"]) @ params["head"].T).argmax(axis=-1), filled


def mean_loss(config, params, ids, targets):
    """Mean cross-entropy of targets (batch, time)."""
    logits = hidden(config, params, ids)[0] @ params["head"].T
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - picked).mean()


def shapes(config) -> dict[str, Any]:
    """The shape of every parameter; norms are those of one dimension."""
    d, h, r = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    d_n, d_r, d_v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    r_q, e, width = config["q_lora_rank"], config["n_routed_experts"], config["moe_intermediate_size"]

    def ffn(width: int) -> list[tuple[int, ...]]:
        return [(2 * width, d), (d, width)]

    of_attention = {
        "norm_1": (d,),
        "norm_2": (d,),
        "q_a": (r_q, d),
        "q_a_norm": (r_q,),
        "q_b": (h * (d_n + d_r), r_q),
        "kv_a": (r + d_r, d),
        "kv_a_norm": (r,),
        "kv_b": (h * (d_n + d_v), r),
        "o": (d, h * d_v),
    }
    dense = of_attention | {"mlp": ffn(config["intermediate_size"])}
    shared = ffn(config["n_shared_experts"] * width)
    moe = of_attention | {
        "router": (e, d),
        "gate_up": (e, 2 * width, d),
        "down": (e, d, width),
        "shared": shared,
    }
    layers = [
        dense if i < config["first_k_dense_replace"] else moe for i in range(config["num_hidden_layers"])
    ]
    vocab = (config["vocab_size"], d)
    return {"embed": vocab, "layers": layers, "norm": (d,), "head": vocab}
