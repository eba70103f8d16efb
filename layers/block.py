"""One transformer block: attention and feed-forward, each behind a norm and beside the residual stream."""

import numpy as np

from layers.attention import GroupedAttention
from layers.config import DeepSeekConfig
from layers.context import Context
from layers.mla import MLA
from layers.mlp import MLP
from layers.module import Module
from layers.moe import MoE
from layers.norm import RMSNorm
from tinygrad_ds import Tensor
from tinygrad_ds.device import here


class Block(Module):
    """x (batch, time, hidden), context -> x, balance: the balance loss (0-d), 0 if not wanted or without
    experts.

    `slot` is its place in the cache, `layer` its number in the network, which decides whether it is dense.
    """

    def __init__(
        self, config: DeepSeekConfig, layer: int, dtype: np.dtype, *, slot: int | None = None
    ) -> None:
        d, eps = config.hidden_size, config.rms_norm_eps
        attention = MLA if config.attention_kind == "mla" else GroupedAttention
        self.self_attn = attention(config, layer if slot is None else slot, dtype)
        self.mlp = MoE(config, dtype) if config.is_moe(layer) else MLP(d, config.intermediate_size, dtype)
        self.input_layernorm = RMSNorm(d, eps, dtype)
        self.post_attention_layernorm = RMSNorm(d, eps, dtype)

    def __call__(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return self.feed_forward(self.attend(x, context), context)

    def attend(self, x: Tensor, context: Context) -> Tensor:
        """The first half: x plus what attention adds."""
        return x + self.self_attn(self.input_layernorm(x), context)

    def feed_forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The second half: x plus what the experts or the dense part add, and the balance loss."""
        y = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            y, balance = self.mlp(y, context.balance)
        else:
            y, balance = self.mlp(y), Tensor(here().zeros((), dtype=x.dtype))
        return x + y, balance
