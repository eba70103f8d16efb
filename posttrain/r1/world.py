"""What all stages share: the vocabulary, the general text, the task."""

from dataclasses import dataclass
from typing import Any

from posttrain.ledger import Ledger
from posttrain.notation import with_words, words_of
from posttrain.r1.settings import TIME, Road
from posttrain.tasks import Question, draw_many
from train.batches import Tokens, TrainingBatches, tokenize
from train.data import load_corpus
from train.progress import Display
from train.tokenizer import Tokenizer

JUDGED_TOKENS = 40_000  # of the held-out text


@dataclass(frozen=True)
class World:
    """The same for every stage of a road."""

    road: Road
    tokenizer: Tokenizer  # of text and the task's words
    text: Tokens
    held_out: Tokens
    task: Ledger
    display: Display

    def batches(self, seed: int) -> TrainingBatches:
        """Rows of general text."""
        return TrainingBatches(self.text, time=TIME, seed=seed)

    def questions(self, count: int, *seed: int) -> list[Question]:
        """Different problems to train on, by the road's seed and another number."""
        drawn = draw_many(self.task, count, (self.road.seed, *seed))
        return [problem for problem in drawn if isinstance(problem, Question)]

    def judged_text(self) -> dict[str, Any]:
        """What `evaluate` needs to measure the held-out text."""
        return {"text": self.held_out, "text_rows": {"batch": 32, "time": TIME}}


def make_world(road: Road, display: Display) -> World:
    """Read the text and find the vocabulary. Raises UserError."""
    display.say("reading text")
    corpus = load_corpus(road.text, display.say)
    plain = Tokenizer.train(corpus.train, road.vocab_size)
    tokenizer = with_words(plain, words_of(road.languages))
    return World(
        road,
        tokenizer,
        tokenize(corpus.train, plain),
        tokenize(corpus.held_out, plain).thin(JUDGED_TOKENS),
        Ledger(languages=road.languages),
        display,
    )
