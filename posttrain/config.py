"""What the commands ask for, as frozen dataclasses: read from flags or TOML, written beside the results."""

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from posttrain.grpo import Objective
from posttrain.learning import Learning
from posttrain.sources import TaskSettings
from train.cache import write_aside
from train.config import changed, to_toml
from train.errors import UserError

Model = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
Chains = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHAINS")]
NOWHERE = Path()  # a positional that must be given


def at_least_one(settings: object, *names: str) -> None:
    """Raise UserError where one of these settings is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise UserError(f"{name} is {getattr(settings, name)} but must be at least 1")


@dataclass(frozen=True)
class Text:
    """General text beside the chains, so that a model keeps its language."""

    text: tuple[Path, ...] = ()
    """Your own text: UTF-8 files and folders. Without it: documentation that comes with Python."""
    text_rows: int = 0
    """Rows of text in a step; 0: none."""
    text_time: int = 128
    """Tokens in a row of text."""
    text_weight: float = 1.0
    """Weight of its loss beside that of the chains."""


@dataclass(frozen=True)
class Sft:
    """Fine-tune a model on prompts with completions."""

    model: Model = NOWHERE
    """A run's folder, or a published checkpoint with its tokenizer.json."""
    chains: Chains = NOWHERE
    """JSON lines like {"prompt": "..", "completion": ".."}."""
    out: Path = Path("runs/sft")
    """Folder of the run; it must not exist."""
    steps: int = 100
    batch: int = 64
    """Completions in a step."""
    micro_batch: int = 64
    """Completions that go through the network at once."""
    seed: int = 0
    save_every: int = 50
    """Steps between two checkpoints."""
    text: Text = Text()
    learning: Learning = Learning(lr=1e-3, decay="linear")

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "batch", "micro_batch", "save_every")


@dataclass(frozen=True)
class Distill(Sft):
    """Teach a student the teacher's distributions over the tokens of given chains."""

    model: Model = NOWHERE
    """The student: a run's folder, or a published checkpoint."""
    out: Path = Path("runs/distill")
    """Folder of the run; it must not exist."""
    teacher: Path = NOWHERE
    """The teacher, of the student's vocabulary."""
    k: int = 64
    """Likeliest tokens of the teacher that are kept; the rest is spread evenly."""
    beta: float = 0.0
    """0: forward KL, 1: reverse, between: the generalised Jensen-Shannon divergence."""
    temperature: float = 1.0
    """Both distributions are softened by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "k")
        if not 0 <= self.beta <= 1:
            raise UserError(f"beta is {self.beta} but must be from 0 (forward) to 1 (reverse)")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature} but must be above 0")


@dataclass(frozen=True)
class Grpo:
    """Reinforce what a model does better than itself, by rules."""

    model: Model = NOWHERE
    """A run's folder, or a published checkpoint with its tokenizer.json."""
    out: Path = Path("runs/grpo")
    """Folder of the run; it must not exist."""
    steps: int = 50
    format_weight: float = 0.2
    """Weight of the reward for the one exact shape, beside 1 for a right answer."""
    language_weight: float = 0.0
    """Weight of the reward for keeping to the prompt's notation."""
    seed: int = 0
    save_every: int = 50
    """Steps between two checkpoints."""
    problems: TaskSettings = TaskSettings()
    objective: Objective = Objective()
    learning: Learning = Learning()

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "save_every")
        if self.steps % self.objective.updates:
            raise UserError(
                f"steps is {self.steps} but must be a multiple of updates, which is {self.objective.updates}"
            )


@dataclass(frozen=True)
class Reject:
    """Sample chains and keep those that are right, well formed and not too many of one prompt."""

    model: Model = NOWHERE
    """A run's folder, or a published checkpoint with its tokenizer.json."""
    out: Path = Path("chains.jsonl")
    """The file of JSON lines; it must not exist."""
    prompts: int = 1024
    samples: int = 4
    """Completions of each prompt."""
    cap: int = 2
    """Completions of one prompt that may be kept."""
    max_new_tokens: int = 32
    temperature: float = 1.0
    seed: int = 0
    problems: TaskSettings = TaskSettings()

    def __post_init__(self) -> None:
        at_least_one(self, "prompts", "samples", "cap", "max_new_tokens")


@dataclass(frozen=True)
class Eval:
    """Judge a model on held-out prompts."""

    model: Model = NOWHERE
    """A run's folder, or a published checkpoint with its tokenizer.json."""
    prompts: int = 128
    samples: int = 8
    """Completions of each prompt; pass@k and cons@k are of so many."""
    max_new_tokens: int = 32
    temperature: float = 1.0
    seed: int = 0
    json: Path | None = None
    """Write the figures to this file too."""
    examples: int = 2
    """Completions to show."""
    problems: TaskSettings = TaskSettings()
    text: Text = Text()
    """With --text-rows above 0: measure the held-out part of this text, so many rows at a time."""

    def __post_init__(self) -> None:
        at_least_one(self, "samples", "max_new_tokens")
        if self.prompts < 2:
            raise UserError(f"prompts is {self.prompts} but an error needs at least 2")


@dataclass(frozen=True)
class Chat:
    """Talk to a model; its thoughts are dimmed. An empty line draws a problem of the task."""

    model: Model = NOWHERE
    """A run's folder, or a published checkpoint with its tokenizer.json."""
    prompt: str | None = None
    """Answer this and end, instead of asking for lines."""
    max_new_tokens: int = 200
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    seed: int = 0
    problems: TaskSettings = TaskSettings()

    def __post_init__(self) -> None:
        at_least_one(self, "max_new_tokens")


def save_settings(settings: Any, path: Path) -> None:
    """Write all settings as TOML; what is None stays away."""
    write_aside(path, to_toml(asdict(settings)).encode())


def load_settings(default: Any, path: Path) -> Any:
    """`default` with the settings of a TOML file. Raises UserError."""
    try:
        return changed(default, tomllib.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a TOML file of settings, or a run's folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from error
