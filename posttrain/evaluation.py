"""What a model can do on held-out prompts: one report for every stage, each figure with its error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layers import DeepSeekModel
from posttrain.completion import read, thinks
from posttrain.metrics import Figure, cons_at_k, figure, pass_at_k
from posttrain.notation import LANGUAGE_OF
from posttrain.rewards import ACCURACY, FORMAT, judge
from posttrain.rollout import rollout
from posttrain.tasks import Problem, Task, draw_many
from train.batches import Tokens
from train.errors import UserError
from train.evaluate import bits_per_byte
from train.tokenizer import Tokenizer

ROWS = 256  # sequences that are sampled at once


@dataclass(frozen=True)
class Judged:
    """The completions of one prompt."""

    problem: Problem
    right: tuple[bool, ...]
    formatted: tuple[bool, ...]
    thinking: tuple[bool, ...]
    mixed: tuple[bool, ...]  # words of more than one notation, or of another than the prompt's
    lengths: tuple[int, ...]
    answers: tuple[str | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """All figures of a model. Errors of sampled ones are over prompts, since samples of one are alike."""

    pass_1: Figure
    greedy: Figure
    pass_k: Figure
    cons_k: Figure
    k: int
    think_rate: Figure
    format_rate: Figure
    mixed_rate: Figure
    length: Figure
    by_level: dict[int, Figure]
    bits_per_byte: float | None = None
    judged: tuple[Judged, ...] = ()

    def to_dict(self) -> dict:
        """For a JSON file: every figure as value, error and count; texts are left out."""
        plain = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Figure)}
        levels = {str(level): value._asdict() for level, value in self.by_level.items()}
        return plain | {"k": self.k, "by_level": levels, "bits_per_byte": self.bits_per_byte}

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        names = {
            "pass@1": self.pass_1,
            "greedy": self.greedy,
            f"pass@{self.k}": self.pass_k,
            f"cons@{self.k}": self.cons_k,
            "think rate": self.think_rate,
            "format": self.format_rate,
            "mixed notation": self.mixed_rate,
            "length": self.length,
        }
        names |= {f"pass@1, level {level}": value for level, value in self.by_level.items()}
        rows = [f"{name:<20}{value}" for name, value in names.items()]
        if self.bits_per_byte is not None:
            rows.append(f"{'held-out text':<20}{self.bits_per_byte:.3f} bits/byte")
        return rows


def evaluate(
    model: DeepSeekModel,
    tokenizer: Tokenizer,
    task: Task,
    *,
    prompts: int = 128,
    samples: int = 8,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    text: Tokens | None = None,
    text_rows: dict[str, int] | None = None,
) -> Evaluation:
    """Judge `samples` completions of each of `prompts` held-out prompts, and the likeliest one.

    The prompts depend on the seed alone, so models are compared on the same ones. text, with text_rows
    `batch` and `time`: held-out text whose bits per byte are measured too. Raises UserError.
    """
    if prompts < 2 or samples < 1:
        raise UserError(f"prompts is {prompts} and samples {samples}: at least 2 and 1 are needed")
    problems = draw_many(task, prompts, (seed, 3), held_out=True)
    judged = judged_samples(model, tokenizer, problems, samples, temperature, max_new_tokens, (seed, 4))
    greedy = judged_samples(model, tokenizer, problems, 1, 0.0, max_new_tokens, (seed, 4))
    levels = sorted({problem.level for problem in problems})
    return Evaluation(
        pass_1=figure([np.mean(each.right) for each in judged]),
        greedy=figure([each.right[0] for each in greedy]),
        pass_k=figure([pass_at_k(samples, sum(each.right), samples) for each in judged]),
        cons_k=figure([cons_at_k(each.answers, each.right) for each in judged]),
        k=samples,
        think_rate=figure([np.mean(each.thinking) for each in judged]),
        format_rate=figure([np.mean(each.formatted) for each in judged]),
        mixed_rate=figure([np.mean(each.mixed) for each in judged]),
        length=figure([np.mean(each.lengths) for each in judged]),
        by_level={
            level: figure([np.mean(each.right) for each in judged if each.problem.level == level])
            for level in levels
        },
        bits_per_byte=None if text is None else bits_per_byte(model, text, **text_rows or {}),
        judged=tuple(judged),
    )


def judged_samples(
    model: DeepSeekModel,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: tuple[int, ...],
) -> list[Judged]:
    """Sample and judge, some prompts at a time."""
    found, step = [], max(1, ROWS // samples)
    for start in range(0, len(problems), step):
        some = problems[start : start + step]
        rolled = rollout(
            model,
            [tokenizer.encode(problem.prompt, special=True) for problem in some],
            end_id=tokenizer.end_id,
            max_new_tokens=max_new_tokens,
            samples=samples,
            temperature=temperature,
            seed=seed,
            first_sequence=start * samples,
        )
        completions = [each.completion(tokenizer) for each in rolled]
        repeated = [problem for problem in some for _ in range(samples)]
        parts = judge((ACCURACY, FORMAT), repeated, completions).parts
        for i, problem in enumerate(some):
            own = slice(i * samples, (i + 1) * samples)
            said = completions[own]
            found.append(
                Judged(
                    problem,
                    tuple(parts["accuracy"][own] > 0.5),
                    tuple(parts["format"][own] > 0.5),
                    tuple(thinks(each) for each in said),
                    tuple(is_mixed(problem, each.text) for each in said),
                    tuple(each.length for each in said),
                    tuple(read(each).answer for each in said),
                    tuple(each.text for each in said),
                )
            )
    return found


def is_mixed(problem: Problem, text: str) -> bool:
    """Whether a completion has a word of another notation than its prompt's, or of two if that has none."""
    found = {LANGUAGE_OF[word] for word in text.split() if word in LANGUAGE_OF}
    return len(found | ({problem.language} if problem.language else set())) > 1
