"""Drawing tokens from logits, with what learning needs. Reference; the twin is in kernels/cpu/drawing.py."""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.inference import inference


class Drawn(NamedTuple):
    """One token for every row of logits."""

    tokens: Array  # (rows,) int64
    logp: Array  # (rows,) float64, of each token
    entropy: Array  # (rows,) float64, of the distribution that it came from


@inference
def draw_tokens(logits, u, *, temperature):
    """The token at share u of softmax(logits / temperature), going up by index.

    logits (rows, vocab), u (rows,) in [0, 1), float64 -> Drawn. With z = logits / temperature - max and
    S = sum_v exp(z_v):

        ln p_v = z_v - ln S,      H = -sum_v p_v ln p_v = ln S - sum_v exp(z_v) z_v / S

    Temperature 0 takes the largest logit, the first of equals; logp and entropy are those of temperature 1.
    A token without weight is never drawn, whatever rounding does.
    """
    xp = namespace(logits)
    z = logits.astype(xp.float64)
    z = z - z.max(axis=-1, keepdims=True)
    if temperature not in (0, 1):
        z /= temperature
    weight = xp.exp(z)
    reached = xp.cumsum(weight, axis=-1)
    total = reached[:, -1]
    if temperature == 0:
        tokens = z.argmax(axis=-1)
    else:
        last = (reached >= total[:, None]).argmax(axis=-1)  # the last that has weight
        tokens = xp.minimum((reached <= (u * total)[:, None]).sum(axis=-1), last)
    log_total = xp.log(total)
    entropy = log_total - (weight * z).sum(axis=-1) / total
    return Drawn(tokens, xp.take_along_axis(z, tokens[:, None], axis=-1)[:, 0] - log_total, entropy)
