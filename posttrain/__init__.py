"""Post-training: tasks and rewards, sampling, fine-tuning, GRPO, distillation, evaluation."""

from posttrain.losses import grpo_loss, kd_loss
from posttrain.metrics import cons_at_k, pass_at_k

__all__ = ["cons_at_k", "grpo_loss", "kd_loss", "pass_at_k"]
