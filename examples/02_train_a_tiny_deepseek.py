# %% [markdown]
# # A DeepSeek from nothing, in one cell of training
#
# Text becomes tokens, tokens become batches, and a network with latent attention, experts and one
# multi-token prediction module learns from them. Then the same once more without moving the routers'
# biases, to see what the auxiliary-loss-free balance does (DeepSeek-V3, section 2.1.2).
#
# Equation: b_e += gamma sign(mean load - load_e)          File: layers/moe.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from layers import DeepSeekConfig, DeepSeekModel, generate
from train import Muon, clip_grad_norm
from train.batches import TrainingBatches, tokenize
from train.data import split_corpus
from train.docstrings import topics
from train.evaluate import bits_per_byte
from train.tokenizer import Tokenizer

# %% [markdown]
# ## Text to tokens
#
# The language reference that ships with Python, 8 % of its documents held out, and a byte-level vocabulary.

# %%
corpus = split_corpus(topics())
tokenizer = Tokenizer.train(corpus.train, 512)
training, held_out = tokenize(corpus.train, tokenizer), tokenize(corpus.held_out, tokenizer)
print(f"{len(training):,} tokens to train on, {corpus.held_out_bytes:,} bytes held out")

config = DeepSeekConfig.from_dict(
    {
        "model_type": "deepseek_v3",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 192,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 256,
    }
)

# %% [markdown]
# ## The loop
#
# Four lines: loss, backward, clip, step. The trainer of `python -m train` is this with care for everything
# that can go wrong.

# %%
STEPS, GAMMA = 120, 0.01


def learn(gamma):
    """Train a fresh network -> it, its losses, and the largest load of an expert (1 = even) step by step."""
    model = DeepSeekModel(config, seed=0)
    optimizer = Muon(model, lr=0.02, adamw_lr=5e-3)
    batches = TrainingBatches(training, time=64, seed=0)
    losses, loads = [], []
    for step in range(STEPS):
        batch = batches.rows(8 * step, 8)
        loss = model.losses(batch.ids, batch.targets, mtp_weight=0.3)
        loss.total.backward()
        clip_grad_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        load = model.moe_layers()["model.layers.1.mlp"].load
        loads.append(load.max() / load.mean())
        model.update_router_bias(gamma)
        losses.append(float(loss.main))
    return model, losses, loads


model, losses, balanced = learn(GAMMA)
_, _, free = learn(0.0)
bits = bits_per_byte(model, held_out.thin(5000), batch=8, time=64)
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; held out {bits:.2f} bits per byte (uniform: 8)")
print(f"busiest expert: {np.mean(balanced[-20:]):.2f} of the mean, without b {np.mean(free[-20:]):.2f}")

# %%
prompt = np.array([tokenizer.encode("The for statement")])
print(tokenizer.decode(generate(model, prompt, max_new_tokens=40, temperature=0.7)[0]))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.plot(losses)
left.set(xlabel="step", ylabel="loss, nats per token", title="learning to read the reference")
right.plot(free, label="b stays 0")
right.plot(balanced, label=f"gamma = {GAMMA}")
right.axhline(1, color="k", linestyle=":")
right.set(xlabel="step", ylabel="load / mean load", title="the busiest of 8 experts")
right.legend()
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "02_train_a_tiny_deepseek.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Replace Muon by `AdamW(model, lr=5e-3)`: how many steps does it need for the same loss?
# 2. Make gamma ten times larger. The load oscillates: why does the sign of the error, and not its size,
#    decide?
