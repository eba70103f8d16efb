# %% [markdown]
# # A GPU: the same code, other costs
#
# CuPy's arrays do what NumPy's do, so one setting moves all: `tg.using(device="cuda")`. What changes is what
# things cost. Arithmetic is nearly free; starting a kernel costs microseconds; asking the device for a
# number makes the host wait for all that was queued before. So kernels do much at once, in blocks of threads
# that share fast memory, and a step reads one small array at its end. No GPU is needed to read this lesson.
#
# Equation: l' = e^(m - m') l + sum_j e^(s_j - m')          File: tinygrad_ds/kernels/cuda/attention.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel
from layers.roofline import memory_to_train
from tinygrad_ds.device import DeviceMissing, chosen, to_host
from tinygrad_ds.kernels.table import TWINS

# %% [markdown]
# ## One switch
#
# Where there is no GPU, one sentence says what is missing: the package, the driver or the card. Where there
# is one, the same call gives the same numbers.

# %%
x, w = np.array([[3.0, 4.0]], dtype=np.float32), np.ones(2, dtype=np.float32)
try:
    with chosen("cuda"):
        y = tg.rmsnorm(tg.Tensor(x), tg.Tensor(w))
    assert np.allclose(to_host(y.data), tg.rmsnorm(x, w).data)
    print(f"on the device: {to_host(y.data)}")
except DeviceMissing as missing:
    print(missing)

# %% [markdown]
# ## What a step launches
#
# An observer counts the calls of a training step. All but views, which move nothing, are a launch at least,
# forward and once more backward; a primitive with a twin in CUDA launches one to five kernels where its
# reference would launch one for each operation of its formula. At some 5 microseconds for the host to queue a
# launch, their number sets the least time of a step, however fast the card: small networks are bound by it.


# %%
class Calls:
    """How often each primitive ran, forward and backward."""

    def __init__(self):
        self.forwards, self.backwards = {}, {}

    def forward(self, pair, arrays, result, saved, seconds):
        self.forwards[pair.name] = self.forwards.get(pair.name, 0) + 1

    def backward(self, record, grads, given, seconds):
        self.backwards[record.pair.name] = self.backwards.get(record.pair.name, 0) + 1


config = DeepSeekConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    q_lora_rank=None,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    first_k_dense_replace=1,
    intermediate_size=128,
    moe_intermediate_size=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    max_position_embeddings=64,
)
model = DeepSeekModel(config, seed=0)
ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 64))
with tg.observe(Calls()) as calls:
    model.loss(ids, ids).backward()
VIEWS = {"reshape", "transpose", "split", "broadcast_to"}


def launches(calls):
    """The least number of launches."""
    counts = [*calls.forwards.items(), *calls.backwards.items()]
    return sum(count for name, count in counts if name not in VIEWS)


print(f"{'primitive':<22}{'forward':>8}{'backward':>9}   in CUDA")
for name, count in sorted(calls.forwards.items(), key=lambda item: -item[1]):
    twin = "a view" if name in VIEWS else "a twin" if name in TWINS["cuda"] else "CuPy's own"
    print(f"{name:<22}{count:>8}{calls.backwards.get(name, 0):>9}   {twin}")
total = launches(calls)
print(f"{total} launches at least: at 5 us each the host needs {5e-3 * total:.1f} ms to queue them")
with tg.observe(Calls()) as calls:
    for row in range(len(ids)):
        model.loss(ids[row : row + 1], ids[row : row + 1]).backward()
print(f"in two micro-batches {launches(calls)} for the same tokens: on a GPU, make micro-batches large")

# %% [markdown]
# ## How threads share the work
#
# A kernel is one thread's program. 32 threads, a warp, run in step and can hand numbers to each other; some
# warps are a block, which has fast memory of its own and barriers; blocks know nothing of each other.
#
# For a norm, a warp takes a row: lane l has the columns l, l + 32, .., so that 32 neighbours in memory are
# read at once, and the sum over the row goes from lane to lane in five exchanges. For attention a block owns
# 16 queries and walks past the keys 32 at a time; each tile's scores live in registers, and the softmax is
# brought up to date. Tiles that no query of the block sees are never visited.

# %%
ROWS, KEYS, TIME = 16, 32, 160
visited = np.zeros((TIME // ROWS, TIME // KEYS))
for block in range(len(visited)):
    behind = min(TIME, (block + 1) * ROWS)  # no key from here on is seen by a query of this block
    visited[block, : -(-behind // KEYS)] = 1
print(f"{visited.sum():.0f} of {visited.size} tiles are visited: {visited.mean():.0%}, half for long rows")
assert visited.mean() > 0.5
owner = np.arange(4)[:, None] * 32 + np.arange(96)[None, :] % 32  # (rows, columns): the thread of each entry

# %% [markdown]
# ## What fits
#
# Weights, gradients and two moments take 16 bytes a parameter, whatever the batch; what backward reads grows
# with the tokens of a micro-batch. `python -m layers inspect` says the same for any config.

# %%
larger = config.replace(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    kv_lora_rank=192,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    intermediate_size=2048,
    moe_intermediate_size=384,
    n_routed_experts=32,
    vocab_size=16384,
    max_position_embeddings=1024,
)
batches = [1, 4, 8, 16, 24]
needs = [memory_to_train(larger, batch, 1024) for batch in batches]
for batch, need in zip(batches, needs):
    print(f"micro-batch {batch:>2} x 1024: {sum(need.values()) / 1e9:5.1f} GB")
assert all(sum(a.values()) < sum(b.values()) for a, b in zip(needs, needs[1:]))

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
axes[0].imshow(owner, aspect="auto", cmap="twilight")
axes[0].set(
    title="a norm: which thread reads an entry", xlabel="column", ylabel="row = warp", yticks=range(4)
)
for edge in (31.5, 63.5):
    axes[0].axvline(edge, color="white")
axes[1].imshow(visited, aspect="auto", cmap="Blues", vmin=0, vmax=1.5)
axes[1].set(
    title="attention: tiles that a block visits",
    xlabel="keys, 32 to a tile",
    ylabel="queries, 16 to a block",
    xticks=np.arange(visited.shape[1] + 1) - 0.5,
    yticks=np.arange(visited.shape[0] + 1) - 0.5,
    xticklabels=[KEYS * i for i in range(visited.shape[1] + 1)],
    yticklabels=[ROWS * i for i in range(visited.shape[0] + 1)],
)
axes[1].grid(color="white")
below = np.zeros(len(batches))
for name in needs[0]:
    values = np.array([need[name] for need in needs]) / 1e9
    axes[2].bar([str(batch) for batch in batches], values, bottom=below, label=name)
    below += values
for card in (8, 12, 24):
    axes[2].axhline(card, color="black", linewidth=0.8, linestyle="--")
axes[2].set(title="memory to train 370 M parameters", xlabel="rows of 1024 in a micro-batch", ylabel="GB")
axes[2].legend(fontsize=8)
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "11_gpu.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Halve the network's layers and double its hidden size: which of the two makes fewer launches for as many
#    parameters?
# 2. In `visited`, queries that come 64 to a block: how many tiles are visited then, and which of their
#    entries are computed for nothing?
