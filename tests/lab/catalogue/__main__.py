"""How good is the grader of the exercises? It grades wrong answers, and its rates are counted.

python -m tests.lab.catalogue            the catalogue of typical mistakes, each with its right diagnosis
python -m tests.lab.catalogue --slips    right answers with one change made by a machine, which nobody had in
                                         mind when the grader was written: caught or not

Exit code 1 if an answer of the catalogue is not caught, or not diagnosed as it should be.
"""

import argparse
import ast
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lab.exercises import LADDER
from lab.exercises.examine import examine
from lab.pieces import columns
from tests.lab import answers
from tests.lab.catalogue import broken, eight_bits, first_steps, network, posttrain
from tests.lab.catalogue.making import CATALOGUE
from tests.mutation.mutations import Mutation, mutations

assert broken and eight_bits and first_steps and network and posttrain  # importing them fills the catalogue


class Slip(NamedTuple):
    """A right answer with one change."""

    exercise: str
    mutation: Mutation

    @property
    def name(self) -> str:
        """What was changed where."""
        return f"{self.exercise}: {self.mutation.before}  ->  {self.mutation.after}"


def slips() -> Iterator[Slip]:
    """Every change of every right answer."""
    for name in LADDER:
        (function,) = ast.parse(inspect.getsource(getattr(answers, name))).body
        assert isinstance(function, ast.FunctionDef)
        for mutation in mutations(function):
            yield Slip(name, mutation)


def changed(slip: Slip) -> Callable:
    """The answer with its change."""
    scope = dict(vars(answers))
    exec(compile(ast.Module([slip.mutation.function()], []), "answers", "exec"), scope)
    return scope[slip.exercise]


def said_of(exercise: str, backward: Callable) -> str:
    """The grader's diagnosis."""
    return examine(LADDER[exercise], LADDER[exercise].forward, backward).kind


def of_the_catalogue() -> bool:
    """Print both rates, class by class, and what is wrong; whether nothing is."""
    answers_of, caught, diagnosed, complaints = Counter[str](), Counter[str](), Counter[str](), []
    for entry in CATALOGUE:
        kind = entry.kinds[0] if entry.kinds else "of no known class"
        said = said_of(entry.exercise, entry.backward)
        answers_of[kind] += 1
        caught[kind] += said != "right"
        diagnosed[kind] += said in entry.kinds
        if said == "right" or (entry.kinds and said not in entry.kinds):
            complaints.append(f"{entry.exercise}, {entry.backward.__name__}: {said}, not {kind}")
    rows = [(k, answers_of[k], caught[k], diagnosed[k]) for k in sorted(answers_of)]
    known = len(CATALOGUE) - answers_of["of no known class"]
    print(columns(("class", "answers", "caught", "rightly diagnosed"), rows))
    print(f"\ncaught {rate(caught.total(), len(CATALOGUE))}, diagnosed {rate(diagnosed.total(), known)}")
    print("\n".join(complaints))
    return not complaints


def of_the_slips() -> None:
    """Print how many slips are caught, what they are called, and those that are not caught."""
    said = {slip: said_of(slip.exercise, changed(slip)) for slip in slips()}
    missed = [slip for slip, kind in said.items() if kind == "right"]
    print(columns(("diagnosis", "slips"), Counter(said.values()).most_common()))
    named = sum(kind not in ("right", "unknown") for kind in said.values())
    print(f"\ncaught {rate(len(said) - len(missed), len(said))}, given a name {rate(named, len(said))}")
    print("\n".join(["", "not caught:", *(slip.name for slip in missed)]))


def rate(part: int, whole: int) -> str:
    """A share in numbers."""
    return f"{part} of {whole} ({part / whole:.1%})"


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.catalogue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slips", action="store_true", help="changes made by a machine instead")
    if parser.parse_args().slips:
        of_the_slips()
    elif not of_the_catalogue():
        sys.exit(1)


if __name__ == "__main__":
    main()
