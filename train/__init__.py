"""Training: text to tokens, optimizers, schedules, the one loop, checkpoints, evaluation and reports."""

from train.muon import Muon
from train.optimizer import AdamW, clip_grad_norm

__all__ = ["AdamW", "Muon", "clip_grad_norm"]
