# %% [markdown]
# # Longer context: the same weights read four times as far
#
# A network trained on rows of 64 tokens has never seen a key more than 63 tokens away. Its rotary pairs turn
# by t f_i, and the slow ones reach angles beyond that length that no weight was trained for. YaRN (Peng et
# al. 2023; DeepSeek-V3, section 4.3) slows those pairs down, so that 256 positions use the angles of 64, and
# leaves the fast ones alone, which tell neighbours apart. A short phase of training does the rest.
#
# Equation: f_i <- f_i (1 - s_i) + f_i / factor s_i,  s_i from 0 (fast pairs) to 1      File: layers/rope.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from layers import DeepSeekConfig, DeepSeekModel
from layers.config import RopeScaling
from layers.rope import frequencies
from train import Muon, clip_grad_norm
from train.batches import TrainingBatches, tokenize
from train.data import split_corpus
from train.docstrings import topics
from train.extend import with_config
from train.positions import nats_by_position, perplexity_by_part, text_table
from train.tokenizer import Tokenizer

LENGTH, FACTOR, STEPS, TOKENS = 64, 4, 400, 1024
LONG, PART = LENGTH * FACTOR, LENGTH // 2

corpus = split_corpus(topics())
tokenizer = Tokenizer.train(corpus.train, 512)
training, held_out = tokenize(corpus.train, tokenizer), tokenize(corpus.held_out, tokenizer)

config = DeepSeekConfig.from_dict(
    {
        "model_type": "deepseek_v3",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": LENGTH,
    }
)

# %% [markdown]
# ## Two ways to give the network 256 positions
#
# Plain: only allow them. YaRN: slow down the pairs that turn less than once in 64 tokens, and sharpen the
# scores by m^2, since a softmax over more keys is flatter.

# %%
yarn = RopeScaling(factor=FACTOR, original_max_position_embeddings=LENGTH, mscale=1.0, mscale_all_dim=1.0)
longer = {
    "plain": config.replace(max_position_embeddings=LONG),
    "YaRN": config.replace(max_position_embeddings=LONG, rope_scaling=yarn),
}
for name, each in longer.items():
    turns = frequencies(each) * LONG / (2 * np.pi)
    print(f"{name:>5}, turns in {LONG} tokens: {' '.join(f'{number:.3g}' for number in turns)}")

# %% [markdown]
# ## Training on short rows, then a tenth of it on long ones
#
# As many tokens in a step, in fewer and longer rows, at a third of the learning rate. `python -m train
# extend RUN --factor 4` does the same for a run of the trainer.


# %%
def learn(model, time, steps, rate):
    """Train with rows of `time` tokens; the learning rate falls in the second half."""
    optimizer = Muon(model, lr=rate, adamw_lr=rate / 4)
    batches, rows = TrainingBatches(training, time=time, seed=0), TOKENS // time
    for step in range(steps):
        optimizer.lr = rate * min(1.0, 2 - 2 * step / steps)
        batch = batches.rows(rows * step, rows)
        model.loss(batch.ids, batch.targets).backward()
        clip_grad_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def judge(model):
    """Perplexity of held-out text in each part of a long row; every part holds the same tokens."""
    nats = nats_by_position(model, held_out.thin(4000), time=LONG, stride=PART, batch=16)
    return perplexity_by_part(nats, PART)


trained = learn(DeepSeekModel(config, seed=0), LENGTH, STEPS, 0.02)
curves = {}
for name, each in longer.items():
    model = with_config(trained, each)
    curves[name] = judge(model)
    curves[f"{name}, trained"] = judge(learn(model, LONG, STEPS // 10, 0.006))
print(text_table(curves, PART))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for name, each in longer.items():
    left.semilogy(frequencies(each) * LONG / (2 * np.pi), "o-", label=name)
left.axhline(FACTOR, color="k", linestyle=":", label=f"one turn in {LENGTH} tokens")
left.set(xlabel="pair i", ylabel=f"turns in {LONG} tokens", title="which pairs are slowed")
left.legend()
for name, perplexities in curves.items():
    middles = PART * (np.arange(len(perplexities)) + 0.5)
    right.plot(middles, perplexities, "o-" if "trained" in name else "o:", label=name)
right.axvline(LENGTH, color="k", linewidth=0.8)
right.set(xlabel="position in the row", ylabel="perplexity", title=f"trained on {LENGTH}, read to {LONG}")
right.legend()
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "06_longer_context.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Slow every pair but the first: `beta_slow=11.0`, since only that one turns so often in 64 tokens. What
#    becomes of the first 32 positions before training, and which pairs told neighbours apart there?
# 2. Leave `mscale` and `mscale_all_dim` away and set `attention_factor=1.0`: nothing is sharpened. How much
#    of YaRN's gain is left, and at which positions?
