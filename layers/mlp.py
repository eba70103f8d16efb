"""The dense feed-forward part: FFN(x) = W_down( silu(W_gate x) * (W_up x) ), SwiGLU (Shazeer 2020)."""

import numpy as np

from layers.linear import Linear
from layers.module import Module
from layers.precision import products
from tinygrad_ds import Tensor


class MLP(Module):
    """x (..., hidden) -> y (..., hidden) through `width` gated channels."""

    def __init__(self, hidden: int, width: int, dtype: np.dtype) -> None:
        self.gate_up_proj = Linear(
            hidden, 2 * width, dtype, merged=(("gate_proj", width), ("up_proj", width))
        )
        self.down_proj = Linear(width, hidden, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x)  # (..., 2 width)
        return products().swiglu_linear(gate_up, self.down_proj.weight)
