"""Ledger arithmetic: a running value through a few labelled steps. Thinking visibly helps, and is short.

    prompt    a 20 b + 4 c + 1 d rev 39 =
    long      <think> b 24 c 25 d 14 </think> <answer> 14 </answer>
    short     <answer> 14 </answer>

A step adds or takes away 1 to 6, or mirrors the value: v becomes 39 - v. Mirror steps do not commute with
the others; without them a network may add the steps up in parallel, and needs no thought.
"""

from dataclasses import dataclass

import numpy as np

from posttrain.notation import HIGHEST, LABELS, LANGUAGES, NUMBERS, VALUES
from posttrain.tasks import Question
from train.errors import UserError

LARGEST = 6  # change in one step


@dataclass(frozen=True)
class Ledger:
    """The task. levels: numbers of steps, each as likely; mirror: the share of mirror steps."""

    levels: tuple[int, ...] = (3, 4, 5, 6)
    mirror: float = 0.35
    languages: tuple[str, ...] = ("latin",)
    """Notations that are asked in, each as likely: latin (a 20), greek (α XX)."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1 or max(self.levels) > len(LABELS["latin"]) - 1:
            raise UserError(f"levels are {self.levels} but must be from 1 to {len(LABELS['latin']) - 1}")
        if not 0 <= self.mirror <= 1:
            raise UserError(f"mirror is {self.mirror} but must be a share from 0 to 1")
        if not self.languages or not set(self.languages) <= set(LANGUAGES):
            raise UserError(f"languages are {self.languages} but can be {' and '.join(LANGUAGES)}")

    def sample(self, rng: np.random.Generator) -> Question:
        """A problem."""
        language = self.languages[rng.integers(len(self.languages))]
        steps = int(self.levels[rng.integers(len(self.levels))])
        labels = [LABELS[language][i] for i in rng.permutation(len(LABELS[language]))[: steps + 1]]
        number = NUMBERS[language]
        value = int(rng.integers(HIGHEST + 1))
        asked, thought = [labels[0], number[value]], []
        for label in labels[1:]:
            if rng.random() < self.mirror:
                asked += [label, "rev", number[HIGHEST]]
                value = HIGHEST - value
            else:
                change = int(rng.integers(1, LARGEST + 1)) * int(rng.choice((-1, 1)))
                if not 0 <= value + change <= HIGHEST:
                    change = -change
                asked += [label, "+" if change > 0 else "-", number[abs(change)]]
                value += change
            thought += [label, number[value]]
        answer = number[value]
        chain = " ".join(["", "<think>", *thought, "</think>", "<answer>", answer, "</answer>"])
        return Question(" ".join(["", *asked, "="]), answer, steps, language, chain, same_value)


def same_value(given: str, wanted: str) -> bool:
    """Whether two words are one number of the ledger, in whichever notation."""
    return VALUES.get(given) == VALUES[wanted]


def short(question: Question) -> str:
    """The completion without a thought."""
    return f" <answer> {question.answer} </answer>"
