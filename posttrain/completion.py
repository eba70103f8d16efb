"""Reading a completion: is there a thought, which is the answer, does it have the one exact shape?

    <think> .. </think> <answer> .. </answer>        with a thought
    <answer> .. </answer>                            without

Nothing else has an answer: not an answer inside the thought, not two of them, no text before, between or
after, no tag left open. Tags are found by searching for them, once each; nothing is matched by a pattern.
"""

from typing import NamedTuple

OPEN_THINK, CLOSE_THINK, OPEN_ANSWER, CLOSE_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
LONGEST = 100_000  # characters; what is longer is not read, and has no answer


class Completion(NamedTuple):
    """What a model said, without the end token, and whether it ended by itself."""

    text: str
    ended: bool = True
    length: int = 0  # tokens, the end token included


class Parts(NamedTuple):
    """The parts of a completion; None where the shape is not one of the two."""

    thought: str | None
    answer: str | None

    @property
    def formatted(self) -> bool:
        """Whether it is the shape with a thought, which is not empty."""
        return bool(self.thought) and bool(self.answer)


NOTHING = Parts(None, None)


def thinks(completion: Completion) -> bool:
    """Whether it begins with a thought, finished or not."""
    return completion.text.lstrip().startswith(OPEN_THINK)


def read(completion: Completion) -> Parts:
    """The thought and the answer, stripped. Both None for any other shape, and where it was cut off."""
    if not completion.ended or len(completion.text) > LONGEST:
        return NOTHING
    text, thought = completion.text.strip(), None
    if text.startswith(OPEN_THINK):
        thought, closed, text = text.removeprefix(OPEN_THINK).partition(CLOSE_THINK)
        if not closed or has_tag(thought):
            return NOTHING
        text = text.lstrip()
    if not (text.startswith(OPEN_ANSWER) and text.endswith(CLOSE_ANSWER)):
        return NOTHING
    answer = text.removeprefix(OPEN_ANSWER).removesuffix(CLOSE_ANSWER)
    if has_tag(answer):
        return NOTHING
    return Parts(None if thought is None else thought.strip(), answer.strip())


def has_tag(text: str) -> bool:
    """Whether any of the four tags stands in a text."""
    return any(tag in text for tag in (OPEN_THINK, CLOSE_THINK, OPEN_ANSWER, CLOSE_ANSWER))
