"""The dense feed-forward part: FFN(x) = W_down( silu(W_gate x) * (W_up x) ), SwiGLU (Shazeer 2020)."""

import numpy as np

import tinygrad_ds as tg
from layers.linear import Linear
from layers.module import Module
from tinygrad_ds import Tensor


class MLP(Module):
    """x (..., hidden) -> y (..., hidden) through `width` gated channels."""

    def __init__(self, hidden: int, width: int, dtype: np.dtype) -> None:
        self.gate_up_proj = Linear(
            hidden, 2 * width, dtype, merged=(("gate_proj", width), ("up_proj", width))
        )
        self.down_proj = Linear(width, hidden, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = tg.split(self.gate_up_proj(x), sections=2, axis=-1)  # (..., width) each
        return self.down_proj(tg.swiglu(gate, up))
