"""Study, trace, check and practise every gradient by hand.

python -m lab list                    all primitives: shapes, what they save, twins, last check
python -m lab explain softmax         derivation, source, numbers through every step, check, uses
python -m lab check softmax           the gradient against differences, for every step size
python -m lab compare rmsnorm         reference and fused twin: errors, speed, memory
python -m lab fp8                     what FP8 does to the numbers of a step, layer by layer
python -m lab trace                   one training step, call by call
python -m lab exercise                the ladder; `exercise softmax` writes a file to fill in
python -m lab exercise --grade FILE   says whether an answer is right, and what is wrong with it
python -m lab report                  all of it as one page

With --device cuda it computes on an NVIDIA GPU.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import lab
from lab.pieces import page
from tinygrad_ds.command import with_device
from train.cache import write_aside
from train.errors import UserError


@with_device
def main() -> None:
    """Do what the arguments say. Exit code 2 where they, or what they name, cannot be used."""
    asked = parser().parse_args()
    try:
        asked.run(asked)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    whole = argparse.ArgumentParser(
        prog="python -m lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what)
        made.set_defaults(run=run)
        return made

    command("list", lambda asked: print(lab.list()), "all primitives, by family")
    each = command("explain", explain, "everything about one primitive")
    each.add_argument("name")
    each.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    step = command("trace", trace, "one training step, call by call")
    step.add_argument("--run", type=Path, metavar="FOLDER", dest="folder", help="of a run of `train`")
    step.add_argument("--html", type=Path, metavar="FILE", help="write a page with the graph instead")
    eight = command("fp8", fp8, "what FP8 does to the numbers of a step: grids, errors, underflow by layer")
    eight.add_argument("--run", type=Path, metavar="FOLDER", dest="folder", help="of a run of `train`")
    eight.add_argument("--html", type=Path, metavar="FILE", help="write a page with the figures instead")
    checks = command("check", check, "gradients against differences, for every step size")
    checks.add_argument("names", nargs="*")
    checks.add_argument("--html", type=Path, metavar="FILE", help="write a page with the curves instead")
    twins = command("compare", compare, "a primitive's reference form and its fused twin")
    twins.add_argument("name")
    twins.add_argument("--html", type=Path, metavar="FILE", help="write a page with the histogram instead")
    task = command("exercise", exercise, "the ladder of exercises; write one, or grade an answer")
    task.add_argument("name", nargs="?", help="write the file of this exercise")
    task.add_argument("--grade", type=Path, metavar="FILE", help="judge the answer in this file")
    everything = command("report", report, "all of it as one page")
    everything.add_argument("--out", type=Path, default=Path("runs/lab/report.html"), metavar="FILE")
    return whole


def explain(asked: argparse.Namespace) -> None:
    """Print or write an explanation."""
    told = lab.explain(asked.name)
    print(told) if asked.html is None else write(asked.html, told.page())


def trace(asked: argparse.Namespace) -> None:
    """Print or write a trace."""
    step = lab.trace(asked.folder)
    shown(asked, step, "A training step, call by call", step.body())


def fp8(asked: argparse.Namespace) -> None:
    """Print or write what FP8 does."""
    found = lab.fp8(asked.folder)
    print(found) if asked.html is None else write(asked.html, found.page())


def check(asked: argparse.Namespace) -> None:
    """Print or write the checks. Exit code 1 if one fails."""
    checks = lab.check(*asked.names)
    shown(asked, checks, "Gradients against differences", checks.body())
    if not checks.passed:
        sys.exit(1)


def compare(asked: argparse.Namespace) -> None:
    """Print or write a comparison."""
    both = lab.compare(asked.name)
    shown(asked, both, f"{asked.name}: reference and fused", both.body())


def exercise(asked: argparse.Namespace) -> None:
    """Print the ladder, write an exercise, or grade an answer: exit code 1 while it is wrong."""
    if asked.name and asked.grade:
        raise UserError("name an exercise to write its file, or give --grade FILE, not both")
    if asked.grade:
        grade = lab.grade(asked.grade)
        print(grade)
        if not grade.passed:
            sys.exit(1)
    elif asked.name:
        print(lab.exercise(asked.name))
    else:
        print(lab.ladder())


def report(asked: argparse.Namespace) -> None:
    """Write the page."""
    print(f"{lab.report().write(asked.out)} shows everything; it needs no network")


def shown(asked: argparse.Namespace, told: object, title: str, body: str) -> None:
    """Print what was found, or write it as a page."""
    print(told) if asked.html is None else write(asked.html, page(title, f"<h1>{title}</h1>{body}"))


def write(path: Path, text: str) -> None:
    """Write a page and say so."""
    try:
        write_aside(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(path)


if __name__ == "__main__":
    main()
