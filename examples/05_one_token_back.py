# %% [markdown]
# # One token's loss, back to its embedding, by hand
#
# A network of one layer, whole: embedding, norm, latent attention, norm, experts, norm, head, loss. First we
# run it forward, keeping what every primitive saved. Then we walk the loss of its last token back through
# all of it, with nothing but the primitives' backward functions on plain arrays, and compare every
# parameter's gradient with the tape's.
#
# Equation: dL/dx = dL/dy dy/dx, some forty times; where x was used twice, the sum      File: layers/model.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel
from layers.norm import LATENT_EPS
from tinygrad_ds.ops.experts import expert_order

config = DeepSeekConfig(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=1,
    first_k_dense_replace=0,
    max_position_embeddings=32,
    num_attention_heads=3,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    moe_intermediate_size=14,
    n_routed_experts=6,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    num_nextn_predict_layers=0,
    initializer_range=0.2,
)
model = DeepSeekModel(config, seed=0, dtype="float64")
block = model.layers[0]
mla, moe = block.self_attn, block.mlp
mla.form = "expanded"  # as the equations are written

T, h, d, K = 7, mla.h, config.hidden_size, config.num_experts_per_tok
ids = np.random.default_rng(1).integers(0, config.vocab_size, (1, T))
targets = np.full((1, T), -100)  # only the last token counts
targets[0, -1] = 42

# %% [markdown]
# ## Two functions
#
# `forward` calls a primitive and keeps what it saved under the name of the step. `backward` takes that and
# what arrives, and notes how large it is.

# %%
SAVED, ARRIVED = {}, {}


def forward(step, name, *arrays, **options):
    """Run a primitive on plain arrays and keep what its backward needs."""
    y, saved = tg.primitives[name].forward(*arrays, **options)
    SAVED[step] = name, saved
    return y


def backward(step, g):
    """From the gradient of a step's result to those of its arguments."""
    name, saved = SAVED[step]
    parts = [part for part in (g if isinstance(g, tuple) else (g,)) if part is not None]
    ARRIVED[step] = np.sqrt(sum(float((part * part).sum()) for part in parts))
    return tg.primitives[name].backward(saved, g)


# %% [markdown]
# ## Forward
#
# MLA: queries through their latent, keys and values through theirs, the rotary part beside both.

# %%
W = {name: leaf.data for name, leaf in model.named_leaves()}
A = "layers.0.self_attn."
x0 = forward("embedding", "embedding", W["embed_tokens.weight"], ids)
n1 = forward("norm 1", "rmsnorm", x0, W["layers.0.input_layernorm.weight"], eps=config.rms_norm_eps)

cos, sin = model.rotary(np.arange(T)[:, None])  # (T, 1, d_r/2)
c_q = forward("q_a", "linear", n1, W[A + "q_a_proj.weight"])
c_q = forward("q norm", "rmsnorm", c_q, W[A + "q_a_layernorm.weight"], eps=LATENT_EPS)
q = forward("q_b", "linear", c_q, W[A + "q_b_proj.weight"])
q = forward("q heads", "reshape", q, shape=(1, T, h, mla.d_n + mla.d_r))
q_nope, q_rope = forward("q parts", "split", q, sections=[mla.d_n], axis=-1)

c_and_k = forward("kv_a", "linear", n1, W[A + "kv_a_proj_with_mqa.weight"])
c, k_r = forward("latent parts", "split", c_and_k, sections=[mla.r], axis=-1)
c_kv = forward("kv norm", "rmsnorm", c, W[A + "kv_a_layernorm.weight"], eps=LATENT_EPS)
c_kv = forward("c_kv shape", "reshape", c_kv, shape=(1, T, 1, mla.r))
k_r = forward("k_r shape", "reshape", k_r, shape=(1, T, 1, mla.d_r))
k_r = forward("k_r turned", "rope", k_r, cos, sin)
q_rope = forward("q_rope turned", "rope", q_rope, cos, sin)

kv = forward("kv_b", "linear", c_kv, W[A + "kv_b_proj.weight"])
kv = forward("kv heads", "reshape", kv, shape=(1, T, h, mla.d_n + mla.d_v))
k_nope, v = forward("kv parts", "split", kv, sections=[mla.d_n], axis=-1)
k_r = forward("k_r for all heads", "broadcast_to", k_r, shape=(1, T, h, mla.d_r))
k = forward("k", "concatenate", k_nope, k_r, axis=-1)
q = forward("q", "concatenate", q_nope, q_rope, axis=-1)
q, k, v = (forward(f"{n} by head", "transpose", z, axes=(0, 2, 1, 3)) for n, z in zip("qkv", (q, k, v)))
o = forward("attention", "attention", q, k, v, scale=mla.s)
o = forward("o by time", "transpose", o, axes=(0, 2, 1, 3))
o = forward("o", "reshape", o, shape=(1, T, h * mla.d_v))
o = forward("o_proj", "linear", o, W[A + "o_proj.weight"])
x1 = forward("residual 1", "add", x0, o)

# %% [markdown]
# The experts: choose, sort by expert, two products with SwiGLU between; the shared expert beside.

# %%
M = "layers.0.mlp."
n2 = forward("norm 2", "rmsnorm", x1, W["layers.0.post_attention_layernorm.weight"], eps=config.rms_norm_eps)
flat = forward("tokens", "reshape", n2, shape=(T, d))
scores = forward("router", "linear", flat, W[M + "gate.weight"])
bias = moe.gate.e_score_correction_bias.data
chosen = forward("choice", "router_selection", scores, bias, **moe.gate.rules)
offsets, position = expert_order(chosen.indices, num_experts=config.n_routed_experts)
gate_up = forward("experts in", "experts_in", flat, W[M + "experts.gate_up_proj"], position, offsets)
down = W[M + "experts.down_proj"]
y = forward("experts out", "experts_out", gate_up, chosen.weights, down, position, offsets)
shared = forward("shared in", "linear", flat, W[M + "shared_experts.gate_up_proj.weight"])
gate, up = forward("shared parts", "split", shared, sections=2, axis=-1)
inner = forward("shared swiglu", "swiglu", gate, up)
shared = forward("shared out", "linear", inner, W[M + "shared_experts.down_proj.weight"])
y = forward("routed + shared", "add", y, shared)
y = forward("experts' sum", "reshape", y, shape=(1, T, d))
x2 = forward("residual 2", "add", x1, y)

top = forward("last norm", "rmsnorm", x2, W["norm.weight"], eps=config.rms_norm_eps)
head = W["lm_head.weight"]
loss = forward("head and loss", "linear_cross_entropy", top, head, targets, reduction="sum")
print(f"loss of the last token: {loss:.6f}, of a uniform guess {np.log(config.vocab_size):.6f}")

# %% [markdown]
# ## Backward: head, last norm, and the fork of the second residual
#
# x2 = x1 + y, so both get the same gradient; x1's other share comes back through the experts.

# %%
G = {}  # the gradient of every parameter
g, G["lm_head.weight"], _ = backward("head and loss", np.ones(()))
g, G["norm.weight"] = backward("last norm", g)
g_x1, g = backward("residual 2", g)

# %% [markdown]
# The experts. The tokens' rows were used three times: by the shared expert, by the routed ones, and by the
# router, which decided how much each of those counts.

# %%
(g,) = backward("experts' sum", g)
g_routed, g_shared = backward("routed + shared", g)
g, G[M + "shared_experts.down_proj.weight"] = backward("shared out", g_shared)
(g,) = backward("shared parts", backward("shared swiglu", g))
g_flat, G[M + "shared_experts.gate_up_proj.weight"] = backward("shared in", g)

g, g_weights, G[M + "experts.down_proj"], _, _ = backward("experts out", g_routed)
g, G[M + "experts.gate_up_proj"], _, _ = backward("experts in", g)
g_flat = g_flat + g
g, _ = backward("choice", (g_weights, None, None))
g, G[M + "gate.weight"] = backward("router", g)
g_flat = g_flat + g

(g,) = backward("tokens", g_flat)
g, G["layers.0.post_attention_layernorm.weight"] = backward("norm 2", g)
g_x1 = g_x1 + g  # both branches of the fork
print("the token reaches", np.count_nonzero(np.abs(G[M + "experts.down_proj"]).sum(axis=(1, 2))), "experts")

# %% [markdown]
# MLA. The causal mask lets the last token's loss reach all tokens before it, here and nowhere else.

# %%
g_x0, g = backward("residual 1", g_x1)
g, G[A + "o_proj.weight"] = backward("o_proj", g)
(g,) = backward("o", g)
(g,) = backward("o by time", g)
g_q, g_k, g_v = ((backward(f"{n} by head", g)[0]) for n, g in zip("qkv", backward("attention", g)))

g_q_nope, g_q_rope = backward("q", g_q)
g_k_nope, g_k_r = backward("k", g_k)
(g_k_r,) = backward("k_r for all heads", g_k_r)
(g,) = backward("kv parts", (g_k_nope, g_v))
(g,) = backward("kv heads", g)
g, G[A + "kv_b_proj.weight"] = backward("kv_b", g)
(g_c,) = backward("c_kv shape", g)
g_q_rope, _, _ = backward("q_rope turned", g_q_rope)
g_k_r, _, _ = backward("k_r turned", g_k_r)
(g_k_r,) = backward("k_r shape", g_k_r)
g_c, G[A + "kv_a_layernorm.weight"] = backward("kv norm", g_c)
(g,) = backward("latent parts", (g_c, g_k_r))
g_n1, G[A + "kv_a_proj_with_mqa.weight"] = backward("kv_a", g)

(g,) = backward("q parts", (g_q_nope, g_q_rope))
(g,) = backward("q heads", g)
g, G[A + "q_b_proj.weight"] = backward("q_b", g)
g, G[A + "q_a_layernorm.weight"] = backward("q norm", g)
g, G[A + "q_a_proj.weight"] = backward("q_a", g)
g_n1 = g_n1 + g

g, G["layers.0.input_layernorm.weight"] = backward("norm 1", g_n1)
g_x0 = g_x0 + g
G["embed_tokens.weight"], _ = backward("embedding", g_x0)

# %% [markdown]
# ## The tape's answer
#
# The tape does what we did: the same functions on the same arrays. Sums of two gradients do not depend on
# their order; that of the three for the tokens' rows does, in the last bit, and we took the tape's order,
# the last use first. So with the reference kernels nothing at all may differ. The fused kernels sum in
# another order (a row at a time, several numbers at once), which moves last bits.

# %%


def by_tape(kernels):
    """Every parameter's gradient, from the tape."""
    model.zero_grad()
    with tg.using(kernels=kernels):
        model.loss(ids, targets).backward()
    return {name: leaf.grad for name, leaf in model.named_leaves()}


reference, fused = by_tape("reference"), by_tape("fused")
assert set(G) == set(reference)
differ = [name for name in G if not np.array_equal(G[name], reference[name])]
print(f"{len(G) - len(differ)} of {len(G)} gradients have the same bits as the tape's", differ or "")
largest = max(np.abs(G[name] - fused[name]).max() / np.abs(fused[name]).max() for name in G)
print(f"with the fused kernels the largest difference is {largest:.1e} of the largest entry")

reached = np.abs(g_x0[0]).sum(axis=-1)  # (T,)
print("gradient that reaches the embedding of each token:", np.round(reached, 3))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 7), width_ratios=[2, 1], layout="constrained")
left.barh(list(ARRIVED), list(ARRIVED.values()))
left.invert_yaxis()
left.set(
    xscale="log", xlabel="norm of the gradient that arrives", title="from the loss back to the embedding"
)
left.tick_params(axis="y", labelsize=7)
right.bar(range(T), reached)
right.set(xlabel="token", ylabel="sum of |dL/dx|", title="what reaches each token")
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "05_one_token_back.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Set `targets[0, 2] = 42` instead: which tokens does the gradient reach now, and why not the later ones?
# 2. Add the three gradients of `g_flat` in another order. Which parameters lose their last bit, and which
#    keep it?
