"""The bench model in JAX: every step is one compiled function, and donated arrays are written in place."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from benchmarks.peers.jax_model import decode_step, hidden, mean_loss, shapes

LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0


def adamw(params: Any, grads: Any, first: Any, second: Any, step: Any) -> tuple[Any, Any, Any]:
    """AdamW with the gradient clipped to norm 1, matrices decayed."""
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP / (norm + 1e-6)), grads)
    first = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, first, grads)
    second = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, second, grads)

    def moved(w, m, v):
        update = m / (1 - BETAS[0] ** step) / (jnp.sqrt(v / (1 - BETAS[1] ** step)) + EPS)
        return w - LR * (update + (DECAY * w if w.ndim > 1 else 0.0))

    return jax.tree.map(moved, params, first, second), first, second


class Jax:
    """The peer."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.rng = np.random.default_rng(0)
        self.prefill = jax.jit(partial(hidden, config))
        self.decode_step = jax.jit(partial(decode_step, config), donate_argnums=1)

        @partial(jax.jit, donate_argnums=(0, 1, 2))
        def step(params: Any, first: Any, second: Any, count: Any, ids: Any, targets: Any) -> tuple:
            loss, grads = jax.value_and_grad(partial(mean_loss, config))(params, ids, targets)
            return loss, *adamw(params, grads, first, second, count)

        self.step = step

    def versions(self) -> dict[str, str]:
        """What the figures depend on."""
        return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}

    def build(self) -> None:
        """Parameters and the optimizer's states."""

        def draw(shape: tuple[int, ...]) -> jax.Array:
            scale = self.config["initializer_range"]
            return (
                jnp.ones(shape)
                if len(shape) == 1
                else jnp.asarray(self.rng.normal(0, scale, shape), "float32")
            )

        self.params = jax.tree.map(draw, shapes(self.config), is_leaf=lambda node: isinstance(node, tuple))
        self.first, self.second = (jax.tree.map(jnp.zeros_like, self.params) for _ in range(2))
        self.count = 0

    def train(self, batch: int, time: int) -> dict[str, float]:
        """One step: forward, backward, clipping, AdamW."""
        ids = self.rng.integers(0, self.config["vocab_size"], (batch, time + 1))
        self.count += 1
        loss, self.params, self.first, self.second = self.step(
            self.params, self.first, self.second, float(self.count), ids[:, :-1], ids[:, 1:]
        )
        return {"loss": float(jax.block_until_ready((loss, self.params))[0])}

    def decode(self, batch: int, context: int, new: int) -> dict[str, float]:
        """Seconds per step of decoding `new` tokens greedily behind a prompt of `context` tokens."""
        ids = self.rng.integers(0, self.config["vocab_size"], (batch, context))
        kept = self.prefill(self.params, ids)[1]
        caches = [jnp.pad(made, ((0, 0), (0, new + 1), (0, 0))) for made in kept]
        ids, caches = self.decode_step(
            self.params, caches, ids[:, -1:], np.int32(context)
        )  # compiles at first
        ids.block_until_ready()
        start = time.perf_counter()
        for i in range(new):
            ids, caches = self.decode_step(self.params, caches, ids, np.int32(context + 1 + i))
            np.asarray(ids)  # a token is wanted before the next one
        return {"seconds_per_step": (time.perf_counter() - start) / new}
