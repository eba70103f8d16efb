"""The sequence-wise balance loss (DeepSeek-V3, section 2.1.2, equations 17 to 20), without its factor alpha.

    f_e = E/(K T) * #(tokens of the sequence with e among the K highest s)      P_e = mean_t s_et / sum_j s_jt
    loss = mean over sequences of sum_e f_e P_e

f counts and has no gradient; P pulls the scores of overloaded experts down. Even loads give 1.
"""

import tinygrad_ds as tg
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.experts import count_numbers


def balance_loss(scores: Tensor, num_experts_per_tok: int, chosen: Array | None = None) -> Tensor:
    """scores (batch, time, E), s without bias -> 0-d. The K highest are taken without bias or groups.

    Where scores tie, the lower index is counted, as the router has it. chosen (batch, time, K): count these
    experts instead, which are others once b is not 0.
    """
    xp = namespace(scores.data)
    batch, time, experts = scores.shape
    if chosen is None:
        chosen = xp.argsort(-scores.data, axis=-1, kind="stable")[..., :num_experts_per_tok]
    # (batch, time K), one range of numbers a sequence
    numbered = chosen.reshape(batch, -1) + experts * xp.arange(batch)[:, None]
    count = count_numbers(numbered, bins=batch * experts).reshape(batch, experts)
    f = (count * (experts / (num_experts_per_tok * time))).astype(scores.dtype)  # (batch, E)
    p = (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=1)  # (batch, E)
    return tg.sum(p * f) / batch
