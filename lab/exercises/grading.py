"""`lab exercise`: the ladder, the files of its exercises, and their grading in a process of its own."""

import ast
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from datetime import date
from html import escape
from pathlib import Path

from lab.errors import nearest
from lab.exercises.examine import Verdict
from lab.exercises.making import LADDER, Exercise
from lab.pieces import columns, fragment, source_html, table
from lab.state import remember, remembered
from train.errors import UserError

WALL = 30.0  # seconds until a process is given up that neither ends nor uses the processor
FILE = '''"""Exercise {name}: write the gradient of forward by hand.

{task}

Given g = dL/dy, of the shape of y, and what forward saved, backward returns a tuple with dL/d(argument) for
each array that forward takes, of that array's shape{more}. You may save something else in forward, as long as
it returns the same y.

{after}Hint: {hint}

Grade it:  python -m lab exercise --grade {file}
"""

import numpy as np

EXERCISE = "{name}"


{forward}

def backward(saved, g):
    """The gradient of forward: one entry per array."""
    raise NotImplementedError("write me")
'''


@dataclass(frozen=True)
class Ladder:
    """All exercises in order, and which of them are done since when."""

    done: dict[str, str]

    def rows(self) -> list[tuple]:
        """A row for each exercise."""
        return [
            (
                "✓" if name in self.done else "→" if set(each.after) <= set(self.done) else " ",
                name,
                task_of(each),
                ", ".join(each.after),
            )
            for name, each in LADDER.items()
        ]

    def sentence(self) -> str:
        """How far one is, and what comes next."""
        open_now = [row[1] for row in self.rows() if row[0] == "→"]
        following = f"; next: {', '.join(open_now[:3])}" if open_now else ""
        return f"{len(set(self.done) & set(LADDER))} of {len(LADDER)} done{following}."

    def __repr__(self) -> str:
        return f"{columns(HEAD, self.rows(), left=(0, 1, 2, 3))}\n\n{self.sentence()}"

    def body(self) -> str:
        """The ladder as HTML, without the page around it."""
        return f"<p>{self.sentence()}</p>{table(HEAD, self.rows(), left=(0, 1, 2, 3))}"

    def _repr_html_(self) -> str:
        return fragment(self.body())


HEAD = ("", "exercise", "what", "after")


@dataclass(frozen=True)
class Task:
    """An exercise that was written to a file, to be filled in."""

    path: Path

    def __repr__(self) -> str:
        return f"{self.path} waits for you. Then: python -m lab exercise --grade {self.path}"

    def _repr_html_(self) -> str:
        source = source_html(self.path.read_text(encoding="utf-8"))
        return fragment(f"<p><code>{escape(str(self.path))}</code> waits for you:</p>{source}")


@dataclass(frozen=True)
class Grade:
    """What the grader says of an answer."""

    exercise: str
    verdict: Verdict
    printed: str = ""  # the end of what the answer printed

    @property
    def passed(self) -> bool:
        """Whether every case is right."""
        return self.verdict.kind == "right"

    def __repr__(self) -> str:
        verdict = self.verdict
        if self.passed:
            lines = [f"{self.exercise}: right in all {verdict.cases} cases. {next_step(self.exercise)}"]
        else:
            lines = [f"{self.exercise}: not yet. {verdict.words[:1].upper()}{verdict.words[1:]}."]
            if verdict.smallest:
                what = "This line" if verdict.kind == "syntax" else "The smallest case that fails"
                lines += ["", f"{what}:", textwrap.indent(verdict.smallest, "    ")]
            lines += ["", f"Hint: {LADDER[self.exercise].hint}"]
        if self.printed:
            lines += ["", "Your file printed (the end of it):", textwrap.indent(self.printed, "    ")]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, _, rest = repr(self).partition("\n")
        look = "good" if self.passed else "bad"
        more = f"<pre>{escape(rest.strip())}</pre>" if rest.strip() else ""
        return fragment(f"<p class={look}>{escape(first)}</p>{more}")


def ladder() -> Ladder:
    """The exercises, with what is done so far."""
    return Ladder({name: str(when) for name, when in remembered("progress").items()})


def find_exercise(name: str) -> Exercise:
    """The exercise called `name`. Raises UserError with the nearest name if there is none."""
    return LADDER[nearest(name, LADDER, "exercise")]


def task_of(each: Exercise) -> str:
    """What is to be differentiated, in a line."""
    return (inspect.getdoc(each.forward) or "").split("\n")[0]


def next_step(name: str) -> str:
    """What to do after an exercise."""
    following = [other.name for other in LADDER.values() if name in other.after]
    return f"Next could be {' or '.join(following)}." if following else "Nothing is built on it: well done."


def exercise_text(each: Exercise, file: str) -> str:
    """The file of an exercise: the forward, the shapes and an empty backward."""
    source = textwrap.dedent(inspect.getsource(each.forward))
    source = source[source.index("def ") :].replace(f"def {each.forward.__name__}(", "def forward(", 1)
    truth_has_none = "None" in (inspect.getdoc(each.forward) or "")
    return FILE.format(
        name=each.name,
        task=inspect.getdoc(each.forward),
        more=", or None where it says so" if truth_has_none else "",
        after=f"After: {', '.join(each.after)}.\n" if each.after else "",
        hint=each.hint,
        file=file,
        forward=source,
    )


def exercise(name: str, folder: Path | str = ".") -> Task:
    """Write `exercise_NAME.py`. Raises UserError for an unknown name, and where the file exists already."""
    each = find_exercise(name)
    path = Path(folder) / f"exercise_{name}.py"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(exercise_text(each, str(path)))
    except FileExistsError:
        raise UserError(f"{path} exists: grade it, move it away, or delete it to begin anew") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return Task(path)


def grade(path: Path | str) -> Grade:
    """Run the answer in a file against many cases, in a process with limits, and say what is wrong.

    A right answer is remembered as done. Raises UserError for what is no file of an exercise.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"{path} cannot be read: {reason}") from None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        name = guessed(path, text)
        place = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else error
        shown = (getattr(error, "text", "") or "").rstrip()
        return Grade(name, Verdict("syntax", f"the file is no Python{place} ({said})", smallest=shown))
    result = run_process(named(path, tree), path)
    if result.passed:
        remember("progress", **{result.exercise: date.today().isoformat()})
    return result


def named(path: Path, tree: ast.Module) -> str:
    """The exercise that a file belongs to: its EXERCISE, else its name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXERCISE":
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                return find_exercise(node.value.value).name
    return guessed(path, "")


def guessed(path: Path, text: str) -> str:
    """The exercise that a file seems to belong to."""
    for line in text.splitlines():
        if line.startswith("EXERCISE = "):
            name = line.removeprefix("EXERCISE = ").strip().strip("\"'")
            return find_exercise(name).name
    if path.stem.startswith("exercise_"):
        return find_exercise(path.stem.removeprefix("exercise_")).name
    raise UserError(f'{path} does not say which exercise it answers: give it a line EXERCISE = "NAME"')


def run_process(name: str, path: Path) -> Grade:
    """Grade a file in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result, printed = Path(folder) / "result.json", Path(folder) / "printed.txt"
        command = [sys.executable, "-m", "lab.exercises.process", name, str(path.resolve()), str(result)]
        environment = os.environ | {
            "TINYGRAD_DS_KERNELS": "reference",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        with printed.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code = process.wait(WALL)
            except subprocess.TimeoutExpired:
                code = HANGING[0]
            finally:
                end(process)
        said = last_lines(printed.read_text(encoding="utf-8", errors="replace"))
        verdict = read_verdict(result)
        if verdict.kind == "hang" and code not in HANGING:
            verdict = Verdict("crash", f"the answer ended its process ({ending(code)})")
        return Grade(name, verdict, said)


HANGING = (-signal.SIGKILL, -signal.SIGXCPU)  # it used up our time or its own


def end(process: subprocess.Popen) -> None:
    """Leave nothing behind: neither the process nor any that the answer has started."""
    with contextlib.suppress(OSError):  # it is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_verdict(result: Path) -> Verdict:
    """The last verdict that the process wrote."""
    try:
        return Verdict(**json.loads(result.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Verdict("crash", "the answer ended its process before it could be judged")


def last_lines(printed: str) -> str:
    """The end of what an answer printed, long lines cut."""
    lines = printed.strip()[-2000:].splitlines()[-8:]
    return "\n".join(line if len(line) <= 100 else f"{line[:99]}…" for line in lines)


def ending(code: int) -> str:
    """How a process ended."""
    return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
