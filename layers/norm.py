"""RMSNorm with its weight."""

import numpy as np

import tinygrad_ds as tg
from layers.module import Module, parameter
from tinygrad_ds import Tensor

LATENT_EPS = 1e-6  # of the norms on MLA's latents, whatever `rms_norm_eps` says (published code)


class RMSNorm(Module):
    """y = x / rms(x) * weight over the last axis. x (..., size)."""

    def __init__(self, size: int, eps: float, dtype: np.dtype) -> None:
        self.weight = parameter((size,), dtype)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return tg.rmsnorm(x, self.weight, eps=self.eps)
