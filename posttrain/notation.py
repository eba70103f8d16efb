"""Two ways to write the same numbers and labels, so that a chain of thought can mix them, as R1-Zero's did.

Signs and tags belong to neither. Words carry their space in front, so that each is one token of a vocabulary
and a text of them reads as it should.
"""

from collections.abc import Sequence

import tokenizers

from train.tokenizer import Tokenizer

HIGHEST = 39  # every value stays in 0..39
SIGNS = ("+", "-", "*", "/", "(", ")", "=", ";", "rev")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def roman(number: int) -> str:
    """A number from 0 to 39 as a Roman numeral; nought is N, as medieval tables of Easter wrote it."""
    tens, ones = divmod(number, 10)
    return "X" * tens + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[ones] or "N"


LANGUAGES = ("latin", "greek")
LABELS = {"latin": tuple("abcdefghijklmnopqrstuvwx"), "greek": tuple("αβγδεζηθικλμνξοπρστυφχψω")}
NUMBERS = {
    "latin": tuple(str(n) for n in range(HIGHEST + 1)),
    "greek": tuple(roman(n) for n in range(HIGHEST + 1)),
}
VALUES = {word: value for words in NUMBERS.values() for value, word in enumerate(words)}
LANGUAGE_OF = {word: name for name in LANGUAGES for word in (*LABELS[name], *NUMBERS[name])}


def words_of(languages: Sequence[str] = LANGUAGES) -> list[str]:
    """All words of the tasks in these notations: tags, signs, labels, numbers."""
    return [*TAGS, *SIGNS, *(word for name in languages for word in (*LABELS[name], *NUMBERS[name]))]


def with_words(tokenizer: Tokenizer, words: Sequence[str] | None = None) -> Tokenizer:
    """The vocabulary and, behind its own tokens, one for each word with its space in front.

    Text that is encoded as plain text never becomes one of them. The result saves and loads as any other.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    added = [
        tokenizers.AddedToken(f" {word}", special=True, normalized=False) for word in words or words_of()
    ]
    backend.add_special_tokens(added)
    return Tokenizer(backend, tokenizer.end)
