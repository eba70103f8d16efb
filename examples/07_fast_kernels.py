# %% [markdown]
# # Fast kernels: count the bytes, then the seconds
#
# A core adds numbers far faster than memory hands them over. So an elementwise chain costs what it reads and
# writes, and the way to make it faster is to read and write less: one pass over the array where there were
# ten. That is what the fused twins do. Here the bytes of three parts of the network are counted from the
# tape, set against this machine's bandwidth, and timed; the largest saving is an array that is never made.
#
# Equation: seconds >= bytes read and written / bandwidth          File: tinygrad_ds/kernels/cpu/norm.py

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygrad_ds as tg
from tinygrad_ds.tape import arrays_in

rng = np.random.default_rng(0)


def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)


def best(function, rounds=5):
    """The shortest of some runs, in seconds: what the machine can do when nothing disturbs it."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


tg.set_threads(1)  # all that follows is one core's work
source = np.ones(2**25, np.float32)  # 128 MiB, which few caches hold
target = np.empty_like(source)
bandwidth = 2 * source.nbytes / best(lambda: np.copyto(target, source))  # bytes per second, both ways
print(f"a copy moves {bandwidth / 1e9:.1f} GB/s")

# %% [markdown]
# ## What a chain moves
#
# The tape tells an observer of every call. This one adds up the arrays that a call is given and the arrays
# that it gives back: each has to come from memory, or go there, once at least.


# %%
class Traffic:
    """Bytes in and out of all calls, forward and backward."""

    def __init__(self):
        self.bytes = self.calls = 0

    def forward(self, pair, arrays, result, saved, seconds):
        self.count(arrays, result)

    def backward(self, record, grads, given, seconds):
        self.count(record.saved, grads, given)

    def count(self, *groups):
        self.calls += 1
        self.bytes += sum(array.nbytes for array in arrays_in(groups))


def composed_norm(x, w):
    return x * tg.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * w


def composed_loss(z, t):
    z = z - z.data.max(axis=-1, keepdims=True)
    log_p = z - tg.log(tg.exp(z).sum(axis=-1, keepdims=True))
    return -tg.take_along_axis(log_p, t[:, None], axis=-1).mean()


x, w, g = draw(16384, 1024), draw(1024), draw(16384, 1024)
z, t, one = draw(4096, 4096), rng.integers(0, 4096, 4096), np.float32(1)
work = {
    "norm": (composed_norm, tg.rmsnorm, [x, w], [], g),
    "loss": (composed_loss, tg.cross_entropy, [z], [t], one),
}


def run(function, arrays, others, g):
    """Forward and backward: the value and the gradients."""
    leaves = [tg.Tensor(array, requires_grad=True) for array in arrays]
    y = function(*leaves, *others)
    y.backward(g)
    return [y.data, *(leaf.grad for leaf in leaves)]


print(f"{'':<16} {'calls':>5} {'MB':>6} {'at the limit':>13} {'measured':>9}")
points = {}
for name, (composed, coarse, *rest) in work.items():
    made = {}
    for form, function in (("composed", composed), ("fused", coarse)):
        with tg.observe(Traffic()) as traffic:
            made[form] = run(function, *rest)
        seconds = best(lambda function=function, rest=rest: run(function, *rest))
        limit = traffic.bytes / bandwidth
        points[f"{name}, {form}"] = traffic.bytes, seconds
        print(
            f"{name + ', ' + form:<16} {traffic.calls:>5} {traffic.bytes / 1e6:>6.0f} "
            f"{1e3 * limit:>10.1f} ms {1e3 * seconds:>6.1f} ms"
        )
    apart = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*made.values(), strict=True)]
    assert max(apart) < 1e-4, apart  # float32, and a gradient of w is a sum of 16384 products

# %% [markdown]
# Both forms give the same numbers. The composed chain is slower because every call writes an array of 64 MiB
# that the next one reads again; the arithmetic in between is the same. The twin of the norm holds a row of
# 4 KiB, which stays in the nearest cache while it is squared, summed and scaled.
#
# ## Attention by blocks: the square that is never made
#
# A softmax needs the largest score and the sum of a whole row, so it seems that all scores of a row must
# stand somewhere. They need not (Milakov and Gimelshein 2018; Dao et al. 2022). Keep a running maximum m, sum
# l and output o; when a block of keys brings a larger maximum m', what was summed before shrinks by
# exp(m - m'):
#
#     m' = max(m, max_j S_j)
#     l' = e^(m - m') l + sum_j e^(S_j - m')
#     o' = e^(m - m') o + sum_j e^(S_j - m') v_j               and in the end  y = o / l


# %%
def by_blocks(q, k, v, block=64):
    """y = softmax(q k^T / sqrt(d) + causal) v, a block of keys at a time. q, k, v (.., time, d)."""
    time = q.shape[-2]
    m = np.full((*q.shape[:-1], 1), -np.inf, q.dtype)  # (.., time, 1)
    l, o = np.zeros_like(m), np.zeros_like(v)  # noqa: E741
    for start in range(0, time, block):
        keys = slice(start, start + block)
        s = q @ k[..., keys, :].swapaxes(-1, -2) / np.sqrt(np.float32(q.shape[-1]))  # (.., time, block)
        hidden = np.arange(time)[keys] > np.arange(time)[:, None]
        s = np.where(hidden, -np.inf, s)
        larger = np.maximum(m, s.max(axis=-1, keepdims=True))
        shrink = np.exp(m - larger)
        p = np.exp(s - larger)
        l = shrink * l + p.sum(axis=-1, keepdims=True)  # noqa: E741
        o = shrink * o + p @ v[..., keys, :]
        m = larger
    return o / l


q, k, v = draw(3, 1, 4, 200, 32)
whole = tg.attention.forward(q, k, v)[0]
print("by blocks, largest difference:", np.abs(by_blocks(q, k, v) - whole).max())

# %% [markdown]
# The fused twin does this, skips the blocks that are hidden, and keeps y, m and 1 / l for every query.
# Backward computes P again from them, block by block, instead of reading it.

# %%
twin, reference = tg.attention.fused["cpu"], tg.attention
lengths = [128, 256, 512, 1024]
kept, seconds = {"reference": [], "twin": []}, {"reference": [], "twin": []}
for length in lengths:
    q, k, v, g = draw(4, 1, 4, length, 32)
    made = {}
    for name, pair in (("reference", reference), ("twin", twin)):
        y, saved = pair.forward(q, k, v)
        made[name] = [y, *pair.backward(saved, g)]
        mine = {id(array) for array in (q, k, v)}
        kept[name].append(sum(array.nbytes for array in arrays_in(saved) if id(array) not in mine))
        seconds[name].append(
            best(lambda pair=pair, q=q, k=k, v=v, g=g: pair.backward(pair.forward(q, k, v)[1], g))
        )
    assert all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*made.values(), strict=True))
for name in kept:
    growth = kept[name][-1] / kept[name][-2]
    print(f"{name:<10} keeps {kept[name][-1] / 1e6:.2f} MB for {lengths[-1]} tokens,", end=" ")
    print(f"{growth:.1f} times what it keeps for half of them")
print(f"at {lengths[-1]} tokens the twin is {seconds['reference'][-1] / seconds['twin'][-1]:.1f}x as fast")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
most = max(moved for moved, _ in points.values())
left.plot([0, most / 1e6], [0, 1e3 * most / bandwidth], "k:", label="bandwidth of a copy")
for name, (moved, took) in points.items():
    left.plot(moved / 1e6, 1e3 * took, "o" if "fused" in name else "s", label=name)
left.set(xlabel="MB that the calls read and write", ylabel="ms", title="bytes decide")
for name, marker in (("reference", "s-"), ("twin", "o-")):
    middle.loglog(lengths, np.array(kept[name]) / 1e6, marker, label=name)
    right.loglog(lengths, 1e3 * np.array(seconds[name]), marker, label=name)
middle.set(xlabel="tokens", ylabel="MB kept beside q, k, v", title="attention: memory")
right.set(xlabel="tokens", ylabel="ms", title="attention: forward and backward")
for ax in (middle, right):
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
for ax in (left, middle, right):
    ax.legend(fontsize=8)
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "07_fast_kernels.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Give the norm 64 rows in place of 16384, so that all arrays stay in a core's own cache, and time 256 such
#    calls. How much of the twin's lead is left, and what is it made of now?
# 2. Call `by_blocks` with blocks of 1, of 16 and of the whole length, and time it. What does a small block
#    cost, and what would a large one cost where the cache holds 32 KiB?
