"""Tasks by name: those of the package, problems in a file, and reasoning-gym's where installed."""

import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.expressions import Expressions, same_number
from posttrain.ledger import Ledger
from posttrain.tasks import Problem, Question, Task, is_held_out
from train.errors import UserError
from train.tokenizer import Tokenizer

GYM = "reasoning-gym:"


@dataclass(frozen=True)
class TaskSettings:
    """Which problems."""

    task: str = "ledger"
    """ledger, expressions, a file of JSON lines like {"prompt": "..", "answer": ".."} (level: a whole number,
    if wanted), or reasoning-gym:NAME."""
    levels: tuple[int, ...] = ()
    """Numbers of steps or operations; empty: those that the task has by default."""
    languages: tuple[str, ...] = ("latin",)
    """Notations of the ledger: latin, greek."""

    def make(self) -> Task:
        """The task. Raises UserError."""
        levels: dict[str, Any] = {"levels": self.levels} if self.levels else {}
        if self.task == "ledger":
            return Ledger(**levels, languages=self.languages)
        if self.task == "expressions":
            return Expressions(**levels)
        if self.task.startswith(GYM):
            return Gym(self.task.removeprefix(GYM))
        if self.task.endswith((".jsonl", ".json")) or Path(self.task).is_file():
            return FromFile(Path(self.task), self.levels)
        raise UserError(
            f"there is no task {self.task!r}: give ledger, expressions, a file of JSON lines or {GYM}NAME"
        )


class FromFile:
    """Problems of a file, each as likely. An answer is right where its text, or its number, is the same."""

    def __init__(self, path: Path, levels: tuple[int, ...] = ()) -> None:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        found = [self.problem(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        self.problems = [problem for problem in found if not levels or problem.level in levels]
        if not self.problems:
            raise UserError(f"{path} holds no problem{f' of levels {levels}' if levels else ''}")

    def problem(self, path: Path, number: int, line: str) -> Question:
        """One line."""
        try:
            fields = json.loads(line)
            prompt, answer, level = fields["prompt"], fields["answer"], fields.get("level", 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'line {number} of {path} is not like {{"prompt": "..", "answer": ".."}}: {line[:80]!r}'
            ) from None
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = json.dumps(answer)
        if not isinstance(prompt, str) or not prompt or not isinstance(answer, str) or type(level) is not int:
            raise UserError(
                f"line {number} of {path}: prompt must be a text, answer a text or number, level an integer"
            )
        return Question(prompt, answer.strip(), level, same=same_text_or_number)

    def sample(self, rng: np.random.Generator) -> Question:
        """One of the problems."""
        return self.problems[int(rng.integers(len(self.problems)))]

    def held_out(self) -> int:
        """How many prompts are held out."""
        return len({problem.prompt for problem in self.problems if is_held_out(problem.prompt)})


def same_text_or_number(given: str, wanted: str) -> bool:
    """Whether both are one text, or one exact number."""
    return given == wanted or same_number(given, wanted)


@dataclass(frozen=True)
class GymProblem:
    """A problem of reasoning-gym, judged by its own function."""

    prompt: str
    dataset: Any
    entry: dict[str, Any]
    level: int = 0
    language: str = ""

    def check(self, answer: str) -> bool:
        """Whether the package gives it the full score."""
        return float(self.dataset.score_answer(answer=answer, entry=self.entry)) >= 1.0


class Gym:
    """A dataset of reasoning-gym by its name, a new problem for each draw. Raises UserError."""

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError(
                f'the task {GYM}{name} needs the package reasoning-gym: pip install "tinygrad_ds[gym]"'
            )
        self.name, self.package = name, importlib.import_module("reasoning_gym")
        try:
            self.sample(np.random.default_rng(0))
        except ValueError as error:
            raise UserError(f"reasoning-gym cannot make {name!r}: {error}") from error

    def sample(self, rng: np.random.Generator) -> GymProblem:
        """One problem."""
        dataset = self.package.create_dataset(self.name, size=1, seed=int(rng.integers(2**31)))
        entry = dataset[0]
        return GymProblem(f"{entry['question']}\n", dataset, entry)


def check_task(task: Task, tokenizer: Tokenizer, limit: int, max_new_tokens: int, draws: int = 64) -> None:
    """Raise UserError where prompts with their answers exceed the `limit` tokens that a network reads.

    All problems of a file are looked at, of other tasks the first `draws`.
    """
    rng = np.random.default_rng(0)
    problems: list[Problem] = (
        [*task.problems] if isinstance(task, FromFile) else [task.sample(rng) for _ in range(draws)]
    )
    rows = tokenizer.encode_batch([problem.prompt for problem in problems], special=True)
    for problem, row in zip(problems, rows):
        if not row or len(row) + max_new_tokens > limit:
            raise UserError(
                f"the prompt {problem.prompt[:60]!r} has {len(row)} tokens and up to {max_new_tokens} are to "
                f"follow, but the network reads {limit} at once: leave it out, or ask for shorter completions"
            )
