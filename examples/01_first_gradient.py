# %% [markdown]
# # A first gradient: the root-mean-square norm
#
# Every primitive of this project is two functions on plain arrays: a forward, which returns its result and
# what the backward will need, and a backward, which turns dL/dy into dL/dx. Here we call both by hand, hold
# the derivative against differences, see a property that the mathematics promises, and then break it to see
# the check fail.
#
# Equation:  y_i = w_i x_i r,  r = (mean(x^2) + eps)^(-1/2)          File: tinygrad_ds/ops/norm.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import tinygrad_ds as tg

rng = np.random.default_rng(0)
x = rng.normal(size=(2, 4))
w = rng.normal(size=4)

# %% [markdown]
# ## Forward and backward on plain arrays
#
# `saved` holds what the derivation uses again: the normalised input, r and the weight.

# %%
y, saved = tg.rmsnorm.forward(x, w, eps=0.0)
print("y =\n", y)
print("saved:", {name: value.shape for name, value in saved._asdict().items()})

g = rng.normal(size=y.shape)  # any dL/dy
grad_x, grad_w = tg.rmsnorm.backward(saved, g)
print("dL/dx =\n", grad_x)

# %% [markdown]
# ## The same, line by line
#
# h = g w is dL/dx_hat. The mean takes out the part of h along x_hat, because scaling x changes nothing.

# %%
r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True))
x_hat = x * r
h = g * w
by_hand = r * (h - x_hat * (h * x_hat).mean(axis=-1, keepdims=True))
print("the derivation's last line equals backward:", np.array_equal(by_hand, grad_x))
print("dL/dx . x, row by row, is zero:", (grad_x * x).sum(axis=-1))

# %% [markdown]
# ## Is it right? Ask differences
#
# Move one entry of x by +-step, and see by how much L = sum(g y) changes. Small steps are exact in
# principle, but the difference of two nearly equal numbers loses digits: the error falls with step^2, and
# then rises with 1/step.


# %%
def loss(x):
    return (g * tg.rmsnorm.forward(x, w, eps=0.0)[0]).sum()


def error(analytic, step):
    """The largest error against central differences, relative to the largest entry."""
    numeric = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[index] = step
        numeric[index] = (loss(x + move) - loss(x - move)) / (2 * step)
    return np.abs(analytic - numeric).max() / np.abs(numeric).max()


steps = 10.0 ** np.arange(-12, 0)
forgot_the_mean = r * h  # a typical mistake: r treated as a constant
right = [error(grad_x, step) for step in steps]
wrong = [error(forgot_the_mean, step) for step in steps]

figure, axes = plt.subplots(figsize=(6, 4))
axes.loglog(steps, right, "o-", label="the derivation")
axes.loglog(steps, wrong, "s--", label="r treated as a constant")
axes.set(xlabel="step", ylabel="relative error", title="rmsnorm: analytic against central differences")
axes.legend()
figure.tight_layout()
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "01_first_gradient.svg")
print(f"best error of the derivation {min(right):.1e}, of the mistake {min(wrong):.1e}")

# %% [markdown]
# `tg.gradcheck` does this for any primitive or function, with better differences and a report to read.

# %%
print(tg.gradcheck(tg.rmsnorm, x, w, eps=1e-6))


# %% [markdown]
# ## On the tape
#
# With Tensors the same pair is recorded, and `backward` walks from the last call to the first.

# %%
tensor_x, tensor_w = tg.Tensor(x, requires_grad=True), tg.Tensor(w, requires_grad=True)
(tg.rmsnorm(tensor_x, tensor_w, eps=0.0) * g).sum().backward()
print(
    "the tape gives the same bits:",
    np.array_equal(tensor_x.grad, grad_x),
    np.array_equal(tensor_w.grad, grad_w),
)

# %% [markdown]
# ## Two things to try
#
# 1. Replace `(h * x_hat).mean` in `by_hand` by `.sum`: which factor does the check report?
# 2. Give `x` a row of zeros: what does eps = 1e-6 save you from, and what is the gradient there?
