"""General text among the problems of reinforcement, and a reward for it by a network that prefers real text.

Such a reward can be hacked: a policy finds what the network likes, which need not be text. So the loss on
held-out text is watched beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import tinygrad_ds as tg
from posttrain.completion import Completion
from posttrain.grpo import Sampled
from posttrain.models import Speaker
from posttrain.r1.preference import PREFIX, scores
from posttrain.rewards import Reward
from posttrain.tasks import Problem, Question, Task
from tinygrad_ds.device import to_host
from train.batches import TrainingBatches
from train.tokenizer import Tokenizer
from train.trainer import Record, State


@dataclass(frozen=True)
class Continuations(Task):
    """General text as a task: prefixes, for which there is no right answer."""

    batches: TrainingBatches
    tokenizer: Tokenizer

    def sample(self, rng: np.random.Generator) -> Question:
        """A prefix from anywhere in the text."""
        row = self.batches.rows(int(rng.integers(self.batches.rows_per_epoch)), 1).ids[0, :PREFIX]
        return Question(self.tokenizer.decode(row), answer="", same=lambda given, wanted: False, plain=True)


@dataclass(frozen=True)
class Mixed(Task):
    """Problems of two tasks, a share of them of the second."""

    first: Task
    second: Task
    share: float

    def sample(self, rng: np.random.Generator) -> Problem:
        """A problem of one of them."""
        return (self.second if rng.random() < self.share else self.first).sample(rng)


@dataclass(frozen=True)
class Taste:
    """The reward for general text: sigmoid(r) of what was written; 0 for prompts of another task."""

    speaker: Speaker

    def reward(self, weight: float = 1.0) -> Reward:
        """As a rule among others. It decides, as rules of accuracy do, since text has no other."""
        return Reward("preference", lambda problem, completion: 0.0, weight, decides=True, batch=self.judge)

    def judge(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> np.ndarray:
        """(N,) for all prompts at once."""
        model, tokenizer = self.speaker
        found = np.zeros(len(problems))
        own = [i for i, problem in enumerate(problems) if is_text(problem)]
        if not own:
            return found
        prompts = [tokenizer.encode(problems[i].prompt) for i in own]
        said = [tokenizer.encode(completions[i].text) for i in own]
        longest = max(len(p) + len(s) for p, s in zip(prompts, said))
        ids, weight = np.full((len(own), longest), tokenizer.end_id), np.zeros((len(own), longest))
        for row, (prompt, answer) in enumerate(zip(prompts, said)):
            ids[row, : len(prompt) + len(answer)] = prompt + answer
            weight[row, len(prompt) : len(prompt) + len(answer)] = 1.0 / max(len(answer), 1)
        with tg.no_grad():
            r = to_host(scores(model, ids, weight, tokenizer.end_id).data)
        found[own] = 1.0 / (1.0 + np.exp(-r.astype(np.float64)))
        return found


@dataclass
class Apart:
    """What was earned by the two kinds of prompts, each by itself, in the record of a step."""

    taste: float | None = None
    solved: float | None = None

    def inspect(self, state: State, sampled: Sampled) -> None:
        """Look at a batch of completions."""
        text = np.array([is_text(problem) for problem in sampled.problems])
        parts = sampled.rewards.parts
        self.taste = float(parts["preference"][text].mean()) if text.any() else None
        self.solved = float(parts["accuracy"][~text].mean()) if not text.all() else None

    def __call__(self, state: State, record: Record) -> None:
        """Write it down."""
        record |= {"taste": self.taste, "solved": self.solved}


def is_text(problem: Problem) -> bool:
    """Whether a prompt is general text."""
    return getattr(problem, "plain", False)
