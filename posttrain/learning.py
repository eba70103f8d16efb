"""How a stage of post-training learns: its optimizer, and its learning rate over the steps."""

from dataclasses import dataclass
from typing import Literal

from layers import DeepSeekModel
from train.errors import UserError
from train.muon import Muon
from train.optimizer import AdamW
from train.trainer import State


@dataclass(frozen=True)
class Learning:
    """The optimizer of a stage."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon takes the matrices of the layers and leaves the rest to AdamW."""
    lr: float = 5e-4
    """AdamW's highest learning rate."""
    matrix_lr: float = 0.01
    """Muon's highest learning rate."""
    warmup_steps: int = 5
    decay: Literal["constant", "linear"] = "constant"
    """After the warm-up: stay, or fall to 0 at the end of the stage."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """The gradient's norm is cut to this."""

    def __post_init__(self) -> None:
        for name in ("lr", "matrix_lr", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)} but must be above 0")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is {self.warmup_steps} but must be at least 0")

    def make(self, model: DeepSeekModel) -> AdamW | Muon:
        """The optimizer for a network."""
        betas = self.beta1, self.beta2
        if self.optimizer == "adamw":
            return AdamW(model, lr=self.lr, betas=betas, weight_decay=self.weight_decay)
        return Muon(
            model,
            lr=self.matrix_lr,
            weight_decay=self.weight_decay,
            adamw_lr=self.lr,
            betas=betas,
            adamw_decay=self.weight_decay,
        )

    def rate(self, state: State) -> float:
        """The learning rate of the step to come."""
        peak = self.lr if self.optimizer == "adamw" else self.matrix_lr
        done = state.done / state.total
        fallen = 1.0 if self.decay == "constant" else max(1.0 - done, 0.0)
        return peak * fallen * min(1.0, (state.step + 1) / (self.warmup_steps + 1))
