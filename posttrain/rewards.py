"""Rewards: rules that judge completions, put together by weight, each with its name in the metrics."""

import math
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from posttrain.completion import Completion, read
from posttrain.notation import LANGUAGE_OF
from posttrain.tasks import Problem

SECONDS = 2.0  # that one judgement may take


class RewardError(Exception):
    """A reward that broke or is no number. The message names the reward and the sample."""


@dataclass(frozen=True)
class Reward:
    """One rule. judge(problem, completion) -> a finite number.

    decides: whether a group has something to learn from is asked of these alone, so that a group in which
    all answers are wrong does not learn to look well. batch(problems, completions) -> one number each, in
    place of judge, for rewards that a network gives.
    """

    name: str
    judge: Callable[[Problem, Completion], float]
    weight: float = 1.0
    decides: bool = False
    batch: Callable[[Sequence[Problem], Sequence[Completion]], np.ndarray] | None = None


class Rewards(NamedTuple):
    """What completions earned: `total` (N,), every rule's part before its weight, and who ran out of time."""

    total: np.ndarray
    parts: dict[str, np.ndarray]
    deciding: np.ndarray  # (N,) the weighted sum of the rules that decide; `total` where none does
    timeouts: int = 0

    def means(self) -> dict[str, float]:
        """The mean of each rule, for the metrics."""
        return {name: float(values.mean()) for name, values in self.parts.items()}


def accuracy(problem: Problem, completion: Completion) -> float:
    """1 where the answer is right, by the problem's own exact check."""
    answer = read(completion).answer
    return float(problem.check(answer)) if answer else 0.0


def shape(problem: Problem, completion: Completion) -> float:
    """1 for the one exact shape: a thought, then an answer, and nothing else."""
    return float(read(completion).formatted)


def language(problem: Problem, completion: Completion) -> float:
    """The share of the words with a notation that are in the prompt's; 0 where there is no such word.

    DeepSeek-R1, section 2.3.2: the share of words in the target language.
    """
    words = [found for word in completion.text.split() if (found := LANGUAGE_OF.get(word))]
    return words.count(problem.language) / len(words) if words else 0.0


ACCURACY = Reward("accuracy", accuracy, decides=True)
FORMAT = Reward("format", shape, weight=0.2)
LANGUAGE = Reward("language", language)  # added to accuracy as it is, as in DeepSeek-R1


def judge(
    rewards: Sequence[Reward],
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    seconds: float = SECONDS,
) -> Rewards:
    """What each completion earns for its problem. Raises RewardError.

    A rule that takes longer than `seconds` for one sample gives it 0 there, which is counted. (Python stops
    it by a signal, in the main thread only; elsewhere there is no limit.)
    """
    parts, timeouts = {}, 0
    for reward in rewards:
        if reward.batch is not None:
            values = np.asarray(reward.batch(problems, completions), dtype=np.float64)
            if values.shape != (len(completions),):
                raise RewardError(
                    f"the reward {reward.name!r} gave shape {values.shape} for {len(completions)} samples"
                )
        else:
            values = np.empty(len(completions))
            with Clock(seconds) as clock:
                for i, (problem, completion) in enumerate(zip(problems, completions, strict=True)):
                    try:
                        clock.start()
                        values[i] = reward.judge(problem, completion)
                        clock.stop()
                    except OutOfTime:
                        values[i] = 0.0
                        timeouts += 1
                    except Exception as error:
                        raise RewardError(
                            f"the reward {reward.name!r} raised {type(error).__name__} ({error}) for "
                            f"{named(i, problem, completion)}"
                        ) from error
        for i in np.flatnonzero(~np.isfinite(values))[:1].tolist():
            raise RewardError(
                f"the reward {reward.name!r} is {values[i]} for {named(i, problems[i], completions[i])}"
            )
        parts[reward.name] = values
    total = weighted(rewards, parts, len(completions))
    deciding = [reward for reward in rewards if reward.decides]
    return Rewards(total, parts, weighted(deciding, parts, len(completions)) if deciding else total, timeouts)


def weighted(rewards: Sequence[Reward], parts: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The weighted sum of some rules."""
    return sum((reward.weight * parts[reward.name] for reward in rewards), np.zeros(count))


def named(number: int, problem: Problem, completion: Completion) -> str:
    """A sample in a sentence."""
    said = completion.text if len(completion.text) <= 200 else f"{completion.text[:200]}..."
    return f"sample {number}, prompt {problem.prompt!r}, completion {said!r}"


class OutOfTime(BaseException):
    """A judgement that took too long. No Exception, lest the rule itself catch it."""


class Clock:
    """In a `with` block: raises OutOfTime `seconds` after `start`, unless `stop` comes first."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.works = math.isfinite(seconds) and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self.works:
            self.before = signal.signal(signal.SIGALRM, self.ring)
        return self

    def __exit__(self, *error: object) -> None:
        if self.works:
            self.stop()
            signal.signal(signal.SIGALRM, self.before)

    def start(self) -> None:
        """Wind it up."""
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def stop(self) -> None:
        """Let it not ring."""
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def ring(self, number: int, frame: Any) -> None:
        """Called by Python where the time is over."""
        raise OutOfTime
