"""Reinforcement as a contender: the network of the road to R1, its task, and steps of the one training loop.

Weights are random, so every completion is as long as allowed: TOKENS, about what a policy writes that thinks.
Nothing such a network says is right; so that every group has something to learn from, as most do while a
policy still learns, its words are rewarded too.
"""

import platform
from collections.abc import Callable
from functools import partial
from pydoc_data.topics import topics
from time import perf_counter as clock
from typing import Any

import numpy as np

from layers import DeepSeekModel, generate
from posttrain.completion import Completion
from posttrain.grpo import Objective, Reinforcement
from posttrain.ledger import Ledger
from posttrain.notation import LANGUAGE_OF, with_words
from posttrain.r1 import Road
from posttrain.r1.works import RL
from posttrain.rewards import ACCURACY, FORMAT, Reward
from posttrain.rollout import rollout
from posttrain.tasks import Problem, draw_many
from train.tokenizer import Tokenizer
from train.trainer import State, train

PROMPTS, GROUP, TOKENS = 32, 8, 16
LR = RL.lr
NEW = 32  # tokens of a rollout and of bare decoding


def share_of_words(problem: Problem, completion: Completion) -> float:
    """How many of the words are labels or numbers."""
    words = completion.text.split()
    return sum(word in LANGUAGE_OF for word in words) / max(len(words), 1)


REWARDS = (ACCURACY, FORMAT, Reward("words", share_of_words, decides=True))


def vocabulary() -> Tokenizer:
    """Of Python's own documentation and the words of the task, as on the road with two notations."""
    return with_words(Tokenizer.train(list(topics.values()), Road().vocab_size))


def network(tokenizer: Tokenizer) -> DeepSeekModel:
    """The road's network with random weights."""
    road = Road()
    return DeepSeekModel(road.network(road.hidden_size, tokenizer.vocab_size, tokenizer.end_id), seed=0)


class Policy:
    """Ours: steps of GRPO, completions with all that learning needs of them, and bare decoding."""

    def __init__(self, config: dict[str, Any]) -> None:
        """The benchmark's config is of another network."""

    def versions(self) -> dict[str, str]:
        """What the figures depend on."""
        return {"python": platform.python_version(), "numpy": np.__version__}

    def build(self) -> dict[str, int]:
        """The network, its optimizer, the task."""
        self.tokenizer = vocabulary()
        self.model = network(self.tokenizer)
        self.optimizer = RL.make(self.model)
        self.subject = Reinforcement(
            self.model, self.tokenizer, Ledger(), REWARDS, Objective(PROMPTS, GROUP, TOKENS)
        )
        self.state = State(total=0.0)
        return {"parameters": sum(p.data.size for _, p in self.model.named_parameters())}

    def grpo(self, steps: int) -> dict[str, Any]:
        """Seconds of each of so many steps, behind one that is not counted; tokens of a completion."""
        ends: list[float] = []
        self.state.total += steps + 1
        train(
            self.model,
            self.optimizer,
            self.subject.next_work,
            self.subject.loss,
            self.state,
            learning_rate=RL.rate,
            after=[self.subject.after, lambda state, record: ends.append(clock())],
        )
        assert self.subject.sampled is not None
        length = np.mean([len(sample.tokens) for sample in self.subject.sampled.samples])
        return {"each": np.diff(ends).tolist(), "length": float(length)}

    def decoding(self, batch: int) -> dict[str, float]:
        """Tokens a second of bare greedy decoding, of a rollout, and of one with 8 samples of a prompt."""
        problems = draw_many(Ledger(levels=(4,)), batch, 0)  # prompts of one length
        prompts = [self.tokenizer.encode(problem.prompt, special=True) for problem in problems]
        sampled = partial(rollout, self.model, end_id=self.tokenizer.end_id, max_new_tokens=NEW)
        return {
            "bare": rate(lambda: generate(self.model, np.array(prompts), NEW)[:, -NEW:].size),
            "rollout": rate(lambda: counted(sampled(prompts))),
            "groups": rate(lambda: counted(sampled(prompts[: batch // GROUP], samples=GROUP))),
        }


def counted(samples: list) -> int:
    """Tokens of all completions."""
    return sum(len(sample.tokens) for sample in samples)


def rate(call: Callable[[], int]) -> float:
    """Tokens a second of a call that returns how many it made."""
    start = clock()
    tokens = call()
    return tokens / (clock() - start)
