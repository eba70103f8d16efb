"""Who trains: one process, which does everything itself. Several are a `Crew` (train/parallel/crew.py)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layers import DeepSeekModel
from train.device_step import Pending, clip_later
from train.observe import squares_by_layer
from train.trainer import Loss, Record, State, Work, accumulate

Hook = Callable[[State, Record], None]


class Team:
    """What a run asks of whoever carries it out. After `take`:

    model, optimizer: what the training loop is given; in a crew, a rank's part. whole, whole_optimizer: what
    is judged and saved, by the one that `speaks`.
    """

    speaks = True
    model: DeepSeekModel
    whole: DeepSeekModel
    optimizer: Any
    whole_optimizer: Any

    def __init__(self) -> None:
        self.remembered: dict[str, np.ndarray] = {}
        """The loads of experts by layer, where a run that goes on knows them: set before `take`."""

    def take(
        self,
        model: DeepSeekModel,
        make_optimizer: Callable[[Any], Any],
        fill: Callable[[DeepSeekModel], Any] = lambda model: None,
    ) -> None:
        """Take over a network, for which `make_optimizer` makes an optimizer.

        fill: writes the parameters of a network that is hollow, or of any part of it; in a crew a rank has
        memory made for its own part alone.
        """
        model.allocate()
        fill(model)
        self.model = self.whole = model
        self.optimizer = self.whole_optimizer = make_optimizer(model)

    def first_alone(self, work: Callable[[], Any], what: str) -> Any:
        """What `work` returns; in a crew rank 0 does it alone, while the others wait for `what`."""
        return work()

    def in_turn(self, work: Callable[[], Any], what: str) -> Any:
        """What `work` returns; in a crew rank 0 does it first and the others after it."""
        return work()

    def gradients(self, model: DeepSeekModel, work: Work, loss: Loss, state: State) -> dict[str, float]:
        """See `train`."""
        return accumulate(model, work, loss, state)

    def clip(self, model: DeepSeekModel, max_norm: float) -> float | Pending:
        """See `clip_later`."""
        return clip_later(model, max_norm)

    def squares(self, model: DeepSeekModel) -> dict[str, float]:
        """See `squares_by_layer`."""
        return squares_by_layer(model)

    def after(self, own: Sequence[Hook], speaker: Callable[[], Sequence[Hook]]) -> list[Hook]:
        """What follows a step: `own` is done by every rank, what `speaker` makes by the one that speaks."""
        return [*own, *speaker()]
