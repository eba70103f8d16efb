"""Rotary positions: the angles, YaRN's stretching of them, and the softmax scale that goes with it.

Pair i of a key or query at position t turns by the angle t f_i, f_i = theta^(-2i/d). Scores then depend on
the distance alone (Su et al. 2021). YaRN (Peng et al. 2023) reads `factor` times further than was trained:
pairs that turn often within the trained length keep their frequency, those that turn less than once are
slowed by it.
"""

import math

import numpy as np

from layers.config import DeepSeekConfig, RopeScaling
from tinygrad_ds.device import Array, place


def frequencies(config: DeepSeekConfig) -> np.ndarray:
    """f (d/2,) in float64, d = qk_rope_head_dim."""
    d, theta, yarn = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    i = np.arange(d // 2)
    f = theta ** (-2.0 * i / d)
    if yarn is None:
        return f
    low = max(math.floor(pair_that_turns(yarn.beta_fast, d, theta, yarn)), 0)
    high = min(
        math.ceil(pair_that_turns(yarn.beta_slow, d, theta, yarn)), d - 1
    )  # d - 1, not d/2 - 1: as published
    slowed = np.clip((i - low) / (high - low or 0.001), 0.0, 1.0)  # 0: as trained, 1: slowed by factor
    return f * (1 - slowed) + f / yarn.factor * slowed


def pair_that_turns(times: float, d: int, theta: float, yarn: RopeScaling) -> float:
    """The (fractional) pair that makes so many turns in the trained length: f_i * length = 2 pi * times."""
    return d * math.log(yarn.original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(theta))


def magnitude(yarn: RopeScaling, mscale: float) -> float:
    """m = 0.1 mscale ln(factor) + 1: attention gets sharper as the context grows."""
    return 0.1 * mscale * math.log(yarn.factor) + 1.0


def rotation_scale(config: DeepSeekConfig) -> float:
    """What cos and sin are multiplied with: m(mscale) / m(mscale_all_dim), m(1) where one is not set."""
    yarn = config.rope_scaling
    if yarn is None:
        return 1.0
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return magnitude(yarn, yarn.mscale) / magnitude(yarn, yarn.mscale_all_dim)
    return magnitude(yarn, 1.0)


def softmax_scale(config: DeepSeekConfig) -> float:
    """s = d_qk^(-1/2), times m(mscale_all_dim)^2 with YaRN."""
    s = config.qk_head_dim**-0.5
    yarn = config.rope_scaling
    return s if yarn is None else s * magnitude(yarn, yarn.mscale_all_dim) ** 2


class Rotary:
    """cos and sin for positions, computed in float64 and then cast."""

    def __init__(self, config: DeepSeekConfig, dtype: np.dtype) -> None:
        self.frequencies = frequencies(config)  # (d/2,)
        self.scale = rotation_scale(config)
        self.dtype, self.longest = dtype, config.max_position_embeddings

    def __call__(self, positions: np.ndarray) -> tuple[Array, Array]:
        """positions (...) integers -> cos, sin (..., d/2). ValueError for a position beyond the longest."""
        end = int(np.max(positions, initial=-1)) + 1
        if end > self.longest:
            raise ValueError(
                f"the sequence has {end} tokens but max_position_embeddings is {self.longest}: shorten it, "
                "or extend the context by YaRN"
            )
        angles = positions[..., None].astype(np.float64) * self.frequencies  # (..., d/2)
        cos, sin = np.cos(angles) * self.scale, np.sin(angles) * self.scale
        return place(cos, dtype=self.dtype), place(sin, dtype=self.dtype)
