# %% [markdown]
# # Training in eight bits: what FP8 does to numbers, and what keeps it harmless
#
# DeepSeek-V3 multiplies all of its large matrices in FP8, with three bits of mantissa, and loses nothing that
# its loss would show (section 3.3). Three things make that work: a scale for every 128 numbers instead of one
# for all, sums that are moved to float32 before they lose bits, and everything else left alone. Here each of
# them is taken away once, to see what it was for.
#
# Equation: values = round(x / s), s = max(amax, 1e-4) / 448     File: tinygrad_ds/ops/quantize.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygrad_ds as tg
from tinygrad_ds.formats import FORMATS, decode, round_to
from tinygrad_ds.ops.accumulation import multiply

rng = np.random.default_rng(0)


def quantised(x, **options):
    """x on the grid of FP8 and scaled back."""
    values, scales, _ = tg.quantize(x, **options)
    return tg.dequantize(values, scales, tile=options.get("tile", (1, 128))).data


# %% [markdown]
# ## The grid
#
# Between two powers of two, E4M3 has eight numbers: what is rounded is off by up to a sixteenth of itself.

# %%
for name, form in FORMATS.items():
    codes = np.arange(1 << (1 + form.exponent_bits + form.mantissa_bits), dtype=form.code)
    numbers = decode(codes, name)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    inside = numbers[(numbers >= 1) & (numbers <= 2)]
    print(f"{name}: {len(numbers)} numbers up to {form.largest:g}, smallest {numbers[numbers > 0].min():.2g}")
    print(f"      from 1 to 2: {inside[:9]}{' ..' if len(inside) > 9 else ''}")
print("0.3, 3, 300 and 3000 become", round_to(np.array([0.3, 3, 300, 3000], np.float32), "e4m3"))

# %% [markdown]
# ## One scale for all, or one for every 128
#
# 1024 tokens whose sizes differ, as those of gradients do, and one channel that is 1000 times the others. One
# scale for the whole matrix is set by that channel, and small tokens fall through the grid.

# %%
tokens = rng.normal(size=(1024, 1024)) * 10 ** rng.uniform(-3, 0, (1024, 1))
tokens = tokens.astype(np.float32)
outlier = tokens.copy()
outlier[:, 5] *= 1000
errors = {}
for name, x, tile in (
    ("one scale, no outlier", tokens, None),
    ("one scale", outlier, None),
    ("1 x 128", outlier, (1, 128)),
):
    back = quantised(x, tile=tile)[:, 128:]  # the outlier's own tile is left out
    rest = x[:, 128:]
    errors[name] = np.sqrt(((back - rest) ** 2).sum(axis=1) / (rest**2).sum(axis=1))
    print(f"{name:<22} error of a token {errors[name].mean():.1%}, {errors[name].max():.1%} at most,")
    print(f"{'':<22} {(back == 0).mean():.1%} of the numbers became 0")

# %% [markdown]
# ## Sums with fourteen bits
#
# A tensor core adds 32 products at once to a sum that it keeps with about 14 bits. What is below is cut off,
# always towards zero, and the longer the sum, the more there is below. DeepSeek moves the sum to float32
# every N_C = 128 terms.

# %%
lengths = [128, 256, 512, 1024, 2048, 4096]
lost = {None: [], 128: []}
for k in lengths:
    a, b = (quantised(rng.normal(size=(32, k)).astype(np.float32)) for _ in "ab")
    exact = a.astype(np.float64) @ b.T.astype(np.float64)
    for promote_every, row in lost.items():
        off = multiply(a, b.T, "tensor_core", promote_every) - exact
        rms = np.sqrt((exact**2).mean())
        row.append((np.abs(off).max() / rms, np.sqrt((off**2).mean()) / rms))
for promote_every, row in lost.items():
    print(f"promoted every {promote_every}: largest error", [f"{largest:.2%}" for largest, _ in row])

# %% [markdown]
# ## A Linear in FP8
#
# Three products, six factors. x is kept for the backward as codes: a byte each. The factors' rounding is what
# the result is off by; the gradient passes straight through it.

# %%
x, weight = rng.normal(size=(512, 256)).astype(np.float32), rng.normal(size=(384, 256)).astype(np.float32)
g = rng.normal(size=(512, 384)).astype(np.float32)
exact = x @ weight.T, g @ weight, g.T @ x
recipes = {
    "as DeepSeek": tg.Fp8Recipe(),
    "gradients in E5M2": tg.Fp8Recipe(gradient_format="e5m2"),
    "scales powers of two": tg.Fp8Recipe(power_of_two=True),
    "one scale for all": tg.Fp8Recipe(side=None),
    "rounding at random": tg.Fp8Recipe(seed=1),
}
print(f"{'relative error':<22}{'y':>8}{'dx':>8}{'dW':>8}")
for name, recipe in recipes.items():
    leaf, parameter = tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True)
    y = tg.fp8_linear(leaf, parameter, recipe=recipe)
    y.backward(g)
    off = [
        np.sqrt(((made - right) ** 2).mean() / (right**2).mean())
        for made, right in zip((y.data, leaf.grad, parameter.grad), exact)
    ]
    print(f"{name:<22}{off[0]:>8.2%}{off[1]:>8.2%}{off[2]:>8.2%}")
_, saved = tg.fp8_linear.forward(x, weight)
kept = saved.x.codes.nbytes + saved.x.scales.nbytes
print(f"x is kept in {kept / 1000:.0f} kB instead of {x.nbytes / 1000:.0f} kB")

# %% [markdown]
# ## Rounding at random
#
# To the nearest, a step smaller than half of the grid's is lost each time. At random, it is made as often as
# it is large: the mean is right.

# %%
steps = np.full(20_000, 1.02, np.float32)
print("1.02 to the nearest:", round_to(steps, "e4m3").mean())
print(
    "1.02 at random, in the mean:", tg.quantize(np.append(steps, 448), tile=None, seed=0)[0].data[:-1].mean()
)

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
grid = decode(np.arange(127, dtype=np.uint8), "e4m3")
line = np.linspace(0, 4, 2000, dtype=np.float32)
left.plot(line, round_to(line, "e4m3"), label="E4M3")
left.plot(line, round_to(line, "e5m2"), label="E5M2")
left.plot(line, line, ":", color="gray", label="what backward pretends")
left.set(xlabel="x", ylabel="rounded", title="a staircase, and its slope")
left.legend()
for name, error in errors.items():
    middle.semilogy(np.sort(error), label=name)
middle.set(xlabel="tokens, sorted", ylabel="relative error", title="a channel 1000 times the others")
middle.legend()
for (promote_every, row), color in zip(lost.items(), ("C3", "C0")):
    name = "never promoted" if promote_every is None else f"promoted every {promote_every}"
    right.loglog(lengths, [largest for largest, _ in row], "o-", color=color, label=f"{name}: largest")
    right.loglog(lengths, [rms for _, rms in row], "o:", color=color, label=f"{name}: RMS")
right.axhline(0.02, color="gray", linewidth=0.8)
right.set(xlabel="K", ylabel="error / RMS of the product", title="sums with 14 bits")
right.legend(fontsize=8)
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "08_fp8.svg")

# %% [markdown]
# ## Two things to try
#
# 1. Give all tokens the same size (leave out the power of ten). Why does the outlier do so little then, and
#    how large must it become? (E4M3 has exponents too: count what is between 448 and its smallest number.)
# 2. Multiply matrices of positive numbers with `accumulation="tensor_core"` and without promotion. Which way
#    are the results off, and why is it more than for numbers of both signs?
