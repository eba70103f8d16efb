"""Bracketed expressions over exact fractions: ( 3 + 4 ) / 2 = is 7/2, and nothing that rounds to it.

prompt    ( ( 3 + 4 ) / 2 ) =
long      <think> 3 + 4 = 7 ; 7 / 2 = 7/2 </think> <answer> 7/2 </answer>
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from posttrain.numbers import exact_number
from posttrain.tasks import Question
from train.errors import UserError


@dataclass(frozen=True)
class Expressions:
    """The task. levels: numbers of operations; largest: numbers in the prompt are 1 to this.

    limit: no numerator or denominator on the way is above it, so that chains can be written in its words.
    """

    levels: tuple[int, ...] = (1, 2, 3, 4)
    largest: int = 9
    limit: int = 39

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise UserError(f"levels are {self.levels} but must be at least 1")
        if not 1 <= self.largest <= self.limit:
            raise UserError(f"largest is {self.largest} but must be from 1 to limit, which is {self.limit}")

    def sample(self, rng: np.random.Generator) -> Question:
        """A problem; expressions that leave the limit or divide by 0 are drawn again."""
        operations = int(self.levels[rng.integers(len(self.levels))])
        while True:
            steps: list[str] = []
            found = self.build(rng, operations, steps)
            if found is not None:
                text, value = found
                break
        answer = written(value)
        thought = " ; ".join(steps)
        chain = f" <think> {thought} </think> <answer> {answer} </answer>"
        return Question(f" {text} =", answer, operations, "", chain, same_number)

    def build(
        self, rng: np.random.Generator, operations: int, steps: list[str]
    ) -> tuple[str, Fraction] | None:
        """An expression of so many operations with its value; `steps` gets each operation done."""
        if operations == 0:
            number = int(rng.integers(1, self.largest + 1))
            return str(number), Fraction(number)
        left = int(rng.integers(operations))
        one = self.build(rng, left, steps)
        other = self.build(rng, operations - 1 - left, steps)
        if one is None or other is None:
            return None
        sign = "+-*/"[rng.integers(4)]
        (a_text, a), (b_text, b) = one, other
        if sign == "/" and b == 0:
            return None
        value = {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[sign](b)
        if max(abs(value.numerator), value.denominator) > self.limit:
            return None
        steps.append(f"{written(a)} {sign} {written(b)} = {written(value)}")
        return f"( {a_text} {sign} {b_text} )", value


def written(value: Fraction) -> str:
    """A fraction in words that the vocabulary of the tasks has: - 7 / 2."""
    text = f"{abs(value.numerator)}" + (f" / {value.denominator}" if value.denominator > 1 else "")
    return f"- {text}" if value < 0 else text


def same_number(given: str, wanted: str) -> bool:
    """Whether both are numbers, and one and the same."""
    number = exact_number(given)
    return number is not None and number == exact_number(wanted)
