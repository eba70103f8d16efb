"""One stage of post-training in a folder of its own: the loop with metrics, checkpoints and a resume."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from layers import DeepSeekModel
from posttrain.learning import Learning
from posttrain.models import Speaker
from posttrain.rewards import RewardError
from tinygrad_ds import Tensor
from train.checkpoint import Checkpoints, SaveEvery, load_model, load_state
from train.device_memory import MOVING, OutOfMemory, told_where_it_went
from train.errors import UserError
from train.metrics import Metrics
from train.tokenizer import Tokenizer
from train.trainer import Record, State, TrainingStopped, Work, train


class Subject(Protocol):
    """What a stage is about: FineTuning, Distillation, Reinforcement."""

    def next_work(self, state: State) -> Work:
        """The batch of a step."""

    def loss(self, model: DeepSeekModel, part: Any, count: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch."""


@dataclass(frozen=True)
class Start:
    """What a stage begins with, or goes on from."""

    speaker: Speaker
    learning: Learning
    optimizer: Any
    state: State
    reference: DeepSeekModel | None = None

    @classmethod
    def of(
        cls, speaker: Speaker, learning: Learning, steps: int, reference: DeepSeekModel | None = None
    ) -> Self:
        """A stage of so many steps from its beginning."""
        return cls(speaker, learning, learning.make(speaker.model), State(total=float(steps)), reference)


def has_begun(folder: Path) -> bool:
    """Whether a stage has a checkpoint to go on from."""
    return bool(Checkpoints(folder / "checkpoints").all())


def restored(folder: Path, learning: Learning, steps: int) -> Start:
    """Network, optimizer, state and reference (where there is one) of a stage's newest checkpoint.

    Raises UserError where there is none, or all `steps` are done.
    """
    newest = Checkpoints(folder / "checkpoints").latest()
    model = load_model(newest)
    optimizer = learning.make(model)
    state = load_state(newest, optimizer)
    if state.done >= steps:
        raise UserError(
            f"{folder} has done its {state.done:.0f} steps: ask for more, such as --steps {2 * steps}"
        )
    state.total = float(steps)
    reference = load_model(newest / "reference") if (newest / "reference").is_dir() else None
    return Start(Speaker(model, Tokenizer.load(folder)), learning, optimizer, state, reference)


def run_stage(
    folder: Path,
    start: Start,
    subject: Subject,
    *,
    after: Sequence[Callable[[State, Record], None]] = (),
    display: Callable[[State, Record], None] = lambda state, record: None,
    save_every: int = 50,
    multiple: int = 1,
    keep: int = 1,
    bias_speed: float = 0.0,
) -> None:
    """Train to the end, writing metrics.jsonl, checkpoints and the vocabulary into `folder`.

    Checkpoints come after multiples of `multiple` steps only (the updates that share a batch of completions),
    and so must the end. bias_speed: how far the routers' biases move in a step. A reward that breaks stops
    the run with a checkpoint from before the step, and so does a GPU's memory that does not suffice, but for
    the optimizer. Raises TrainingStopped, UserError.
    """
    (model, tokenizer), state, optimizer = start.speaker, start.state, start.optimizer
    if state.total < 1 or state.total % multiple:
        raise UserError(f"steps is {state.total:.0f} but must be at least 1 and a multiple of {multiple}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    beside = {} if start.reference is None else {"reference": start.reference}
    checkpoints = Checkpoints(folder / "checkpoints", keep, beside)
    metrics = Metrics(folder / "metrics.jsonl", state.metrics)
    every = -(-save_every // multiple) * multiple
    remedy = "lower micro_batch, the rows of text, or the prompts and samples of a step"
    try:
        with told_where_it_went(model, optimizer, remedy):
            train(
                model,
                optimizer,
                subject.next_work,
                subject.loss,
                state,
                learning_rate=start.learning.rate,
                clip=start.learning.clip,
                bias_speed=lambda state: bias_speed,
                after=[*after, display, metrics, SaveEvery(checkpoints, model, optimizer, every)],
            )
    except OutOfMemory as error:
        model.zero_grad()
        if not state.torn and not state.step % multiple:
            checkpoints.save(model, optimizer, state)
        moving = MOVING if state.torn else ""
        raise TrainingStopped(f"after step {state.step}: {error} {moving}{checkpoints.told()}") from None
    except RewardError as error:
        saved = checkpoints.save(model, optimizer, state)
        raise TrainingStopped(f"step {state.step + 1}: {error}; {saved} is from before that step") from error
