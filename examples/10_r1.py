# %% [markdown]
# # R1 in small: thinking is found, not taught
#
# A base that can think, and seldom does, is rewarded for right answers and for nothing else. Nobody shows it
# when to think. Its completions are compared with others to the same prompt: those that do better become
# likelier, and since thinking helps, thinking spreads (DeepSeek-R1, 2025, section 2.2).
#
# Equation: A_i = (R_i - mean R) / (std R + 1e-4)                           File: posttrain/advantages.py

# %%
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np

from layers import DeepSeekConfig
from posttrain.advantages import group_advantages
from posttrain.evaluation import evaluate
from posttrain.grpo import Objective, Reinforcement
from posttrain.learning import Learning
from posttrain.ledger import Ledger, short
from posttrain.notation import with_words, words_of
from posttrain.r1.base import fresh
from posttrain.rewards import ACCURACY, FORMAT
from posttrain.sft import FineTuning, example
from posttrain.tasks import draw_many
from train.tokenizer import Tokenizer
from train.trainer import State, train

BASE_STEPS, STEPS, THINK = 800, 30, 0.2
task = Ledger(levels=(1, 2, 3))  # the real road has three to six steps
tokenizer = with_words(Tokenizer.train(["one two three"] * 2, 257), words_of(("latin",)))
first = draw_many(task, 1, 0)[0]
print("prompt:", first.prompt)
print("with a thought:", first.chain)
print("without:", short(first))

# %% [markdown]
# ## A base that can think and seldom does
#
# Most of what it learns from are chains, but the first token of a chain counts so little that the base begins
# to think in one answer out of five.

# %%
config = DeepSeekConfig.from_dict(
    {
        "model_type": "deepseek_v3",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 48,
        "intermediate_size": 144,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
)
model = fresh(config, seed=0)  # random weights

LONG = 0.6  # share of the examples that are chains
weight = THINK * (1 - LONG) / ((1 - THINK) * LONG)
rng = np.random.default_rng(0)
examples = []
for problem in draw_many(task, 10000, 1):
    thinks = rng.random() < LONG
    made = example(tokenizer, problem.prompt, problem.chain if thinks else short(problem))
    weights = np.ones(len(made.completion))
    weights[0] = weight if thinks else 1.0
    examples.append(made._replace(weights=weights))

began = perf_counter()
lessons = FineTuning(examples, time=128, batch=80, micro_batch=80)
learning = Learning(optimizer="muon", lr=5e-3, matrix_lr=0.01, warmup_steps=20, decay="linear")
losses = []
train(
    model,
    learning.make(model),
    lessons.next_work,
    lessons.loss,
    State(total=float(BASE_STEPS)),
    learning_rate=learning.rate,
    after=[lambda state, record: losses.append(record["loss"])],
)
print(f"base: {perf_counter() - began:.0f} s, loss {losses[0]:.2f} -> {np.mean(losses[-20:]):.2f}")
before = evaluate(model, tokenizer, task, prompts=64)
print("\n".join(before.lines()))

# %% [markdown]
# ## Reinforcement
#
# 32 prompts with 8 completions each make a step. By hand, for one prompt with rewards 1, 0, 0, 0: the right
# one has the advantage 1.5, the others -0.5, and where all earn the same, nobody learns anything.

# %%
print(np.round(group_advantages(np.array([1.0, 0, 0, 0, 1, 1, 1, 1]), 4), 3))

began = perf_counter()
reinforcement = Reinforcement(model, tokenizer, task, (ACCURACY, FORMAT), Objective())
learning = Learning(optimizer="adamw", lr=5e-4, warmup_steps=5)
records = []
train(
    model,
    learning.make(model),
    reinforcement.next_work,
    reinforcement.loss,
    State(total=float(STEPS)),
    learning_rate=learning.rate,
    after=[reinforcement.after, lambda state, record: records.append(record)],
)
print(f"{STEPS} steps of reinforcement: {perf_counter() - began:.0f} s")
after = evaluate(model, tokenizer, task, prompts=64)
print("\n".join(after.lines()))
for was, became in zip(before.judged[:3], after.judged[:3]):
    print(f"{was.problem.prompt}\n    before:{was.texts[0]}\n    after: {became.texts[0]}")

# %% [markdown]
# ## What reinforcement added
#
# pass@8 of the base says what eight tries already found. Reinforcement makes a habit of it: pass@1 rises to
# about that height, and seldom beyond.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for name, label in (("reward", "reward"), ("think_rate", "think rate")):
    left.plot([record[name] for record in records], label=label)
lengths = np.array([record["length"] for record in records])
left.plot(lengths / lengths.max(), label=f"length / {lengths.max():.1f}")
left.set(xlabel="step of reinforcement", ylim=(0, 1.25), title="nobody asked it to think")
left.legend()
levels = list(before.by_level)
for told, label in ((before, "base"), (after, "reinforced")):
    figures = [told.by_level[level] for level in levels]
    right.errorbar(levels, [f.value for f in figures], [f.error for f in figures], fmt="o-", label=label)
right.axhline(before.pass_k.value, color="k", linestyle=":", label="base, one of eight right")
right.set(xlabel="steps of the problem", ylabel="pass@1", xticks=levels, ylim=(0, 1.05), title="by length")
right.legend()
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "10_r1.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Leave `FORMAT` away. Does the think rate still rise, and how much later?
# 2. Let the base think in half of its answers (`THINK = 0.5`), or in one of fifty. Where does reinforcement
#    have the least to find, and where does it find nothing in 30 steps?
