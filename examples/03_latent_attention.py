# %% [markdown]
# # What latent attention buys: bytes per token, and two forms of one sum
#
# Decoding reads the cache of every earlier token at each step, so its size decides how many users a machine
# serves. Multi-head latent attention (DeepSeek-V2, section 2.1) keeps one latent per token for all heads.
# Here four attentions of the same model are compared by the bytes that their caches really use, and MLA's
# two forms by their results and their time.
#
# Equation: cache per token and layer = c_kv (r numbers), RoPE(k_r) (d_r)        File: layers/mla.py

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel

settings = {
    "model_type": "deepseek_v3",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_nextn_predict_layers": 0,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "max_position_embeddings": 4096,
}
base = DeepSeekConfig.from_dict(settings)
kinds = {
    "MHA, 16 key heads": DeepSeekConfig.from_dict(settings | {"attention_kind": "mha"}),
    "GQA, 4 key heads": DeepSeekConfig.from_dict(
        settings | {"attention_kind": "gqa", "num_key_value_heads": 4}
    ),
    "MQA, 1 key head": DeepSeekConfig.from_dict(
        settings | {"attention_kind": "mqa", "num_key_value_heads": 1}
    ),
    "MLA": base,
}

# %% [markdown]
# ## Bytes per token, measured from the caches

# %%
rng = np.random.default_rng(0)
prompt = rng.integers(0, 256, (1, 100))
sizes = {}
for name, config in kinds.items():
    model = DeepSeekModel(config, seed=0)
    cache = model.new_cache(1)
    model(prompt, cache=cache)
    sizes[name] = cache.nbytes / cache.length
    print(f"{name:<20} {sizes[name]:>7.0f} bytes a token")

# %% [markdown]
# ## Two forms, one result
#
# Expanded: make keys and values of every head from the latents, then attend. Absorbed: carry the queries
# into the space of the latents, (W_UK^T q) . c = q . (W_UK c), attend there, and come back. For one new
# token the absorbed form never touches the expanded keys of the past.

# %%
model = DeepSeekModel(base, seed=0, dtype="float64")
results = {}
for form in ("expanded", "absorbed"):
    for block in model.layers:
        block.self_attn.form = form
    results[form] = model(prompt).data
print("largest difference of the logits:", np.abs(results["expanded"] - results["absorbed"]).max())

model = DeepSeekModel(base, seed=0)
lengths = [64, 256, 1024, 3072]
seconds = {form: [] for form in ("expanded", "absorbed")}
for length in lengths:
    for form, times in seconds.items():
        for block in model.layers:
            block.self_attn.form = form
        cache = model.new_cache(1)
        model(rng.integers(0, 256, (1, length)), cache=cache)
        best = np.inf
        for _ in range(10):
            start = time.perf_counter()
            model(rng.integers(0, 256, (1, 1)), cache=cache)
            best = min(best, time.perf_counter() - start)
        times.append(1e3 * best)
for form, times in seconds.items():
    print(f"{form}: ms for one token behind {lengths} tokens: {[round(t, 2) for t in times]}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.barh(list(sizes), list(sizes.values()))
left.set(xlabel="bytes per token", title="cache of 2 layers, float32")
for form, times in seconds.items():
    right.loglog(lengths, times, "o-", label=form)
right.set(xlabel="tokens before", ylabel="ms for one token", title="MLA: decoding in both forms")
right.legend()
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "03_latent_attention.svg")

# %% [markdown]
# ## V3's own figures
#
# With r = 512, d_r = 64 and 128 heads of 128, MLA keeps 576 numbers where multi-head attention would keep
# 32,768.

# %%
print(
    "V3:", 512 + 64, "numbers a token and layer, against", 2 * 128 * 128, "- a factor of", round(32768 / 576)
)
with tg.no_grad():
    print("form chosen for one token behind 3072:", model.layers[0].self_attn.cheaper_form(1, 3073))

# %% [markdown]
# ## Two things to try
#
# 1. Set `kv_lora_rank` to 8 and to 128: what happens to the bytes, and from which length on does each form
#    win?
# 2. Let `cheaper_form` decide for a prompt of 100 tokens and for one token behind it. Why do they differ?
