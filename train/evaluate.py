"""Held-out bits per byte: what an arithmetic coder driven by the model would need for the text."""

import tinygrad_ds as tg
from layers import DeepSeekModel
from layers.loss import mean_loss
from train.batches import Batch, Tokens, held_out_batches


def negative_log_likelihood(model: DeepSeekModel, batch: Batch) -> float:
    """Sum of -ln p over the targets of a batch that count."""
    with tg.no_grad():
        return float(mean_loss(model, model.hidden(batch.ids), batch.targets, count=1))


def bits_per_byte(model: DeepSeekModel, tokens: Tokens, *, batch: int, time: int) -> float:
    """Bits per byte of the text in `tokens`, documents' ends included in the bits but not in the bytes.

    Every token is predicted exactly once, from tokens before it alone. The text is read in rows of `time`
    tokens, each of which begins anew: a token has `time` / 2 tokens before it on average.
    """
    batches = held_out_batches(tokens, batch=batch, time=time)
    return tokens.bits_per_byte(sum(negative_log_likelihood(model, each) for each in batches))
