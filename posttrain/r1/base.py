"""The base: a network that reads text, and that has seen the task answered with a thought and without one.

Most completions that it learns from are chains, so that it knows how to think; but the first token of a chain
weighs less in its loss than that of a short answer, so that it seldom begins to. The skill is there and is
rarely used: what reinforcement will find.
"""

import numpy as np

from layers import DeepSeekConfig, DeepSeekModel
from posttrain.learning import Learning
from posttrain.ledger import short
from posttrain.notation import LABELS, LANGUAGE_OF, LANGUAGES, NUMBERS
from posttrain.packing import Example
from posttrain.r1.settings import TIME
from posttrain.r1.world import World
from posttrain.sft import FineTuning, example
from posttrain.tasks import Question

POOL = 20_000  # problems, which come again every 250 steps
BATCH, LONG = 80, 0.6  # completions in a step, and the share that are chains
TEXT_ROWS, TEXT_WEIGHT = 6, 0.3
MIXED = 0.5  # share of the chains that mix two notations, where the task has both
BIAS_SPEED = 5e-3
EMBEDDING_RANGE = 1.0  # standard deviation

LEARNING = Learning(optimizer="muon", lr=5e-3, matrix_lr=0.01, warmup_steps=20, decay="linear")


def fresh(config: DeepSeekConfig, seed: int) -> DeepSeekModel:
    """Random weights, those of the embedding larger: words are told apart from the first step on."""
    model = DeepSeekModel(config, seed=seed)
    rng = np.random.default_rng((seed, 6))
    weight = model.embed_tokens.weight
    weight.data[...] = rng.normal(0.0, EMBEDDING_RANGE, weight.shape)
    return model


def mixture(world: World, seed: int) -> FineTuning:
    """Chains, short answers and text, as the base learns from them.

    A share r of chains whose first token weighs w, beside 1 - r of short answers, makes the network begin a
    thought with probability p = r w / (r w + 1 - r), so w = p (1 - r) / ((1 - p) r).
    """
    p = world.road.think_share
    rng = np.random.default_rng((seed, 7))
    weight = p * (1 - LONG) / ((1 - p) * LONG)
    examples = []
    for question in world.questions(POOL, 8, seed):
        if rng.random() < LONG:
            examples.append(long(world, question, weight, rng))
        else:
            examples.append(example(world.tokenizer, question.prompt, short(question)))
    return FineTuning(
        examples,
        TIME,
        batch=BATCH,
        micro_batch=BATCH,
        text=world.batches(seed),
        text_rows=TEXT_ROWS,
        text_weight=TEXT_WEIGHT,
        seed=seed,
    )


def long(world: World, question: Question, weight: float, rng: np.random.Generator) -> Example:
    """A chain whose first token has this weight; mixed, half of the time, where there are two notations."""
    chain = question.chain
    if len(world.road.languages) > 1 and rng.random() < MIXED:
        chain = mixed(chain, rng)
    found = example(world.tokenizer, question.prompt, chain)
    weights = np.ones(len(found.completion))
    weights[0] = weight
    return found._replace(weights=weights)


def mixed(chain: str, rng: np.random.Generator) -> str:
    """The chain with half of its labels and numbers, by chance, in the other notation."""
    return " ".join(
        translated(word) if word in LANGUAGE_OF and rng.random() < 0.5 else word for word in chain.split(" ")
    )


def translated(word: str) -> str:
    """A label or number in the other notation."""
    one = LANGUAGE_OF[word]
    other = next(language for language in LANGUAGES if language != one)
    words = LABELS if word in LABELS[one] else NUMBERS
    return words[other][words[one].index(word)]
