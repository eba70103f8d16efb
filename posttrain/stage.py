"""One stage of post-training in a folder of its own: the loop with metrics, checkpoints and a resume."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from layers import DeepSeekModel
from posttrain.learning import Learning
from posttrain.models import Speaker
from posttrain.rewards import RewardError
from tinygrad_ds import Tensor
from train.checkpoint import Checkpoints, SaveEvery, load_model, load_state
from train.errors import UserError
from train.metrics import Metrics
from train.trainer import Record, State, TrainingStopped, Work, train


class Subject(Protocol):
    """What a stage is about: FineTuning, Distillation, Reinforcement."""

    def next_work(self, state: State) -> Work:
        """The batch of a step."""

    def loss(self, model: DeepSeekModel, part: Any, count: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch."""


def has_begun(folder: Path) -> bool:
    """Whether a stage has a checkpoint to go on from."""
    return bool(Checkpoints(folder / "checkpoints").all())


def restored(
    folder: Path, learning: Learning, steps: float
) -> tuple[DeepSeekModel, Any, State, DeepSeekModel | None]:
    """Network, optimizer, state and reference (where there is one) of a stage's newest checkpoint."""
    newest = Checkpoints(folder / "checkpoints").latest()
    model = load_model(newest)
    optimizer = learning.make(model)
    state = load_state(newest, optimizer)
    state.total = float(steps)
    reference = load_model(newest / "reference") if (newest / "reference").is_dir() else None
    return model, optimizer, state, reference


def run_stage(
    folder: Path,
    speaker: Speaker,
    work: Subject,
    learning: Learning,
    *,
    steps: int,
    optimizer: Any = None,
    state: State | None = None,
    reference: DeepSeekModel | None = None,
    after: Sequence[Callable[[State, Record], None]] = (),
    display: Callable[[State, Record], None] = lambda state, record: None,
    save_every: int = 50,
    multiple: int = 1,
    keep: int = 1,
) -> State:
    """Train for `steps` steps in all, writing metrics.jsonl, checkpoints and the vocabulary into `folder`.

    optimizer, state and reference are those of `restored` where the stage goes on. Checkpoints come after
    multiples of `multiple` steps only (the updates that share a batch of completions), and so must the end.
    A reward that breaks stops
    the run with a checkpoint from before the step. Raises TrainingStopped, UserError.
    """
    model, tokenizer = speaker
    optimizer = learning.make(model) if optimizer is None else optimizer
    state = State(total=float(steps)) if state is None else state
    if steps < 1 or steps % multiple:
        raise UserError(f"steps is {steps} but must be at least 1 and a multiple of {multiple}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    checkpoints = Checkpoints(
        folder / "checkpoints", keep, beside={} if reference is None else {"reference": reference}
    )
    every = -(-save_every // multiple) * multiple
    metrics = Metrics(folder / "metrics.jsonl", state.metrics)
    try:
        train(
            model,
            optimizer,
            work.next_work,
            work.loss,
            state,
            learning_rate=learning.rate,
            clip=learning.clip,
            after=[*after, display, metrics, SaveEvery(checkpoints, model, optimizer, every)],
        )
    except RewardError as error:
        saved = checkpoints.save(model, optimizer, state)
        raise TrainingStopped(f"step {state.step + 1}: {error}; {saved} is from before that step") from error
    return state
