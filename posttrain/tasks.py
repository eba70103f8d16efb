"""What a task is: problems drawn at random, each with a prompt and an exact check of an answer."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from train.errors import UserError

HELD_OUT = 16  # one prompt in so many is held out
TRIES = 10_000  # draws without a new problem, after which a task has no more


class Problem(Protocol):
    """One problem. Anything with these attributes will do; `Question` is the ready-made one."""

    @property
    def prompt(self) -> str:
        """What the model is given."""

    @property
    def level(self) -> int:
        """How hard it is, for example its number of steps; accuracy is reported by it. 0: not known."""

    @property
    def language(self) -> str:
        """The notation in which it is asked and should be answered; "" where there is only one."""

    def check(self, answer: str) -> bool:
        """Whether what stands between the answer's tags is right."""


class Task(Protocol):
    """Where problems come from."""

    def sample(self, rng: np.random.Generator) -> Problem:
        """A problem, by these random numbers alone."""


@dataclass(frozen=True)
class Question:
    """A problem that knows its answer. chain: a whole completion that is right, where one can be written."""

    prompt: str
    answer: str
    level: int = 0
    language: str = ""
    chain: str = ""
    same: Callable[[str, str], bool] = field(default=lambda given, wanted: given == wanted, compare=False)
    plain: bool = False  # general text, in which no letter is one of the tasks' words

    def check(self, answer: str) -> bool:
        """Whether `answer` is the same as ours, as the task defines it."""
        return self.same(answer, self.answer)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to evaluation: one in 16 by its hash, so the two sides never share one."""
    return hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT == 0


def draw(task: Task, seed: Any, *, held_out: bool = False) -> Problem:
    """A problem of the wanted side of the split, by `seed` (whole numbers) alone. UserError if none comes."""
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        problem = task.sample(rng)
        if is_held_out(problem.prompt) == held_out:
            return problem
    raise UserError(
        f"{TRIES} draws gave no problem that is {'' if held_out else 'not '}held out: the task has too few "
        f"prompts (one in {HELD_OUT} is held out by its hash)"
    )


def draw_many(task: Task, count: int, seed: Any, *, held_out: bool = False) -> list[Problem]:
    """`count` problems with different prompts. UserError where the task has not that many.

    The n-th does not depend on `count`.
    """
    found: dict[str, Problem] = {}
    rng = np.random.default_rng(seed)
    tries = 0
    while len(found) < count:
        problem = task.sample(rng)
        tries += 1
        if is_held_out(problem.prompt) == held_out and problem.prompt not in found:
            found[problem.prompt] = problem
            tries = 0
        if tries > TRIES:
            raise UserError(
                f"{count} different {'held-out' if held_out else 'training'} prompts were asked for but the "
                f"task gave only {len(found)} in {TRIES} more draws: ask for fewer"
            )
    return list(found.values())
