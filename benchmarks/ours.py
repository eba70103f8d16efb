"""This project as a contender."""

import platform
from dataclasses import asdict
from time import perf_counter as clock
from typing import Any

import numpy as np

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel, generate
from train import AdamW, clip_grad_norm


class Ours:
    """The model of benchmarks/config.json, trained and sampled with our kernels."""

    def __init__(self, config: dict[str, Any], kernels: str) -> None:
        self.config = DeepSeekConfig.from_dict(config)
        self.kernels = kernels
        self.model = None
        self.rng = np.random.default_rng(0)

    def versions(self) -> dict[str, str]:
        """What the figures depend on."""
        import numba

        return {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}

    def build(self) -> None:
        """The model and its optimizer."""
        self.model = DeepSeekModel(self.config, seed=0)
        self.optimizer = AdamW(self.model, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def train(self, batch: int, time: int) -> dict[str, float]:
        """One step: forward, backward, clipping, AdamW."""
        ids = self.rng.integers(0, self.config.vocab_size, (batch, time + 1))
        with tg.using(kernels=self.kernels):
            loss = self.model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            clip_grad_norm(self.model, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"loss": loss.item()}

    def profile(self, batch: int, time: int) -> dict[str, Any]:
        """One step, watched: seconds and saved bytes by primitive, and seconds in all."""
        begin = clock()
        with tg.observe(tg.Profile()) as watched:
            self.train(batch, time)
        shares = {name: asdict(share) for name, share in watched.shares.items()}
        return {"shares": {"seconds": clock() - begin, "shares": shares}}

    def decode(self, batch: int, context: int, new: int) -> dict[str, float]:
        """Seconds per step of decoding `new` tokens greedily behind a prompt of `context` tokens."""
        ids = self.rng.integers(0, self.config.vocab_size, (batch, context))
        ticks: list[float] = []

        def on_token(row: int, token: int) -> None:
            if row == 0:
                ticks.append(clock())

        with tg.using(kernels=self.kernels):
            generate(self.model, ids, max_new_tokens=new + 1, temperature=0.0, on_token=on_token)
        return {"seconds_per_step": (ticks[-1] - ticks[0]) / (len(ticks) - 1)}
