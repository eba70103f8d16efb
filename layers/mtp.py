"""Multi-token prediction (DeepSeek-V3, section 2.2): module k predicts the token k + 1 places ahead.

    h'_i = M_k [ RMSNorm_e(Emb(t_{i+k})) ; RMSNorm_h(h^{k-1}_i) ]           M_k (d, 2d), `eh_proj`
    h^k  = RMSNorm(Block_k(h'))                                             `shared_head.norm`
    P(t_{i+k+1}) = softmax(Head(h^k))             embedding and head are the trunk's

h^0 is the trunk's output after its final norm. The paper writes the two halves the other way round.
"""

from collections.abc import Iterator

import numpy as np

import tinygrad_ds as tg
from layers.block import Block
from layers.config import DeepSeekConfig
from layers.context import Context
from layers.linear import Linear
from layers.module import Module, Part
from layers.norm import RMSNorm
from tinygrad_ds import Tensor


class MTPModule(Module):
    """h^{k-1} and Emb(t_{i+k}), (batch, time, d) each -> h^k (batch, time, d) and its balance loss.

    depth is k = 1, 2, ..  Published as layer `num_hidden_layers` + k - 1. Its block has experts, and a cache
    of its own.
    """

    def __init__(self, config: DeepSeekConfig, depth: int, dtype: np.dtype) -> None:
        d, eps = config.hidden_size, config.rms_norm_eps
        self.depth, self.layer = depth, config.num_hidden_layers + depth - 1
        self.enorm = RMSNorm(d, eps, dtype)
        self.hnorm = RMSNorm(d, eps, dtype)
        self.eh_proj = Linear(2 * d, d, dtype)
        self.block = Block(config, self.layer, dtype, slot=0)
        self.shared_head_norm = RMSNorm(d, eps, dtype)

    def __call__(self, h: Tensor, embedded: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        x = self.eh_proj(tg.concatenate([self.enorm(embedded), self.hnorm(h)], axis=-1))
        x, balance = self.block(x, context)
        return self.shared_head_norm(x), balance

    def published(self, path: str = "") -> Iterator[Part]:
        """The block's tensors stand beside the others, as in any layer."""
        for part in super().published():
            name = part.name.removeprefix("block.").replace("shared_head_norm", "shared_head.norm")
            yield part._replace(name=path + name)
