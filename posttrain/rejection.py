"""Rejection sampling: chains that are right and well formed, of different prompts, kept to learn from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from layers import DeepSeekModel
from posttrain.completion import Completion, read
from posttrain.evaluation import is_mixed
from posttrain.rewards import ACCURACY, judge
from posttrain.rollout import rollout
from posttrain.tasks import Problem, Task, draw_many
from train.cache import write_aside
from train.errors import UserError
from train.tokenizer import Tokenizer

ROWS = 256  # sequences that are sampled at once


class Chain(NamedTuple):
    """A prompt with a completion that is worth learning from."""

    prompt: str
    completion: str
    level: int = 0


@dataclass(frozen=True)
class Harvest:
    """What rejection sampling kept, and why it left the rest."""

    chains: list[Chain]
    sampled: int
    refused: dict[str, int]  # by the reason

    @property
    def levels(self) -> dict[int, int]:
        """How many chains there are of each level."""
        return dict(sorted(Counter(chain.level for chain in self.chains).items()))

    def lines(self) -> list[str]:
        """The harvest in words."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.refused.items())
        levels = ", ".join(f"{count} of level {level}" for level, count in self.levels.items())
        return [
            f"kept {len(self.chains)} of {self.sampled} completions ({reasons or 'none refused'})",
            f"by level: {levels or 'none'}",
        ]


def refusal(problem: Problem, completion: Completion, right: bool) -> str:
    """Why a completion is not kept: "" where it is."""
    if not right:
        return "wrong"
    if not read(completion).formatted:
        return "without a thought in the one shape"
    return "in mixed notation" if is_mixed(problem, completion.text) else ""


def reject(
    model: DeepSeekModel,
    tokenizer: Tokenizer,
    task: Task,
    *,
    prompts: int,
    samples: int = 4,
    cap: int = 2,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
) -> Harvest:
    """Sample `samples` completions of each of `prompts` training prompts; keep at most `cap` of each prompt.

    Kept are completions that are right, have the one shape and keep to the prompt's notation, the first of
    equal ones. Without the cap easy prompts would fill the set. Raises UserError where nothing is kept.
    """
    if cap < 1:
        raise UserError(f"cap is {cap} but at least 1 completion of a prompt must be allowed")
    problems = draw_many(task, prompts, (seed, 5))
    chains: list[Chain] = []
    refused: Counter[str] = Counter()
    step = max(1, ROWS // samples)
    for start in range(0, len(problems), step):
        some = problems[start : start + step]
        rolled = rollout(
            model,
            [tokenizer.encode(problem.prompt, special=True) for problem in some],
            end_id=tokenizer.end_id,
            max_new_tokens=max_new_tokens,
            samples=samples,
            temperature=temperature,
            seed=(seed, 6),
            first_sequence=start * samples,
        )
        said = [each.completion(tokenizer) for each in rolled]
        repeated = [problem for problem in some for _ in range(samples)]
        right = judge((ACCURACY,), repeated, said).parts["accuracy"] > 0.5
        for i, problem in enumerate(some):
            own = slice(i * samples, (i + 1) * samples)
            chains += keep(problem, said[own], right[own].tolist(), cap, refused)
    if not chains:
        raise UserError(
            f"none of {prompts * samples} completions could be kept "
            f"({', '.join(f'{count} {why}' for why, count in refused.items())}): the model must first learn "
            "to answer"
        )
    return Harvest(chains, prompts * samples, dict(refused))


def keep(
    problem: Problem,
    completions: Sequence[Completion],
    right: Sequence[bool],
    cap: int,
    refused: Counter[str],
) -> list[Chain]:
    """The chains of one prompt; what is refused is counted."""
    kept: dict[str, Chain] = {}
    for completion, good in zip(completions, right, strict=True):
        why = refusal(problem, completion, good)
        if not why and completion.text in kept:
            why = "said before"
        if not why and len(kept) == cap:
            why = f"above {cap} of a prompt"
        if why:
            refused[why] += 1
        else:
            kept[completion.text] = Chain(problem.prompt, completion.text, problem.level)
    return list(kept.values())


def save_chains(path: Path, chains: Sequence[Chain]) -> None:
    """Write chains as JSON lines, never half of a file."""
    lines = (json.dumps(chain._asdict(), ensure_ascii=False) + "\n" for chain in chains)
    write_aside(path, "".join(lines).encode())


def load_chains(path: Path) -> list[Chain]:
    """Read what `save_chains` wrote, or any JSON lines with prompt and completion. Raises UserError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    chains = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            prompt, completion, level = fields["prompt"], fields["completion"], fields.get("level", 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'line {number} of {path} is not like {{"prompt": "..", "completion": ".."}}: {line[:80]!r}'
            ) from None
        if (
            not (isinstance(prompt, str) and isinstance(completion, str) and isinstance(level, int))
            or not prompt
        ):
            raise UserError(
                f"line {number} of {path}: prompt and completion must be texts, the prompt not empty"
            )
        chains.append(Chain(prompt, completion, level))
    if not chains:
        raise UserError(f"{path} holds no chain: each line is one, with prompt and completion")
    return chains
