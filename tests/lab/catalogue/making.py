"""How the catalogue of wrong answers is kept: each with its exercise and the class that it belongs to."""

from collections.abc import Callable
from typing import NamedTuple


class Wrong(NamedTuple):
    """A wrong answer. `kinds`: the diagnoses that are right for it; none where it is of no known class."""

    exercise: str
    kinds: tuple[str, ...]
    backward: Callable


CATALOGUE: list[Wrong] = []


def wrong(exercise: str, *kinds: str) -> Callable:
    """Register a wrong answer."""

    def register(backward: Callable) -> Callable:
        CATALOGUE.append(Wrong(exercise, kinds, backward))
        return backward

    return register
