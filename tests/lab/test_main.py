"""python -m lab: every command answers, and bad input gets one sentence and exit code 2."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import lab
import tinygrad_ds as tg
from lab.__main__ import main, parser
from lab.exercises import LADDER


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line -> (exit code, what it printed, what it complained)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["lab", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list"], f"{len(tg.primitives)} primitives"),
        (["explain", "softmax"], "∂L/∂xⱼ = Σᵢ gᵢ yᵢ"),
        (["check", "exp"], "passed"),
        (["compare", "softmax"], "Largest relative error in float32"),
        (["exercise"], f"0 of {len(LADDER)} done"),
        (["trace"], "every module"),
    ],
)
def test_commands_answer(run, arguments, expected):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "") and expected in out


@pytest.mark.parametrize(
    "arguments", [["explain", "exp"], ["check", "exp"], ["compare", "softmax"], ["trace"]]
)
def test_pages_are_written(run, tmp_path, arguments):
    code, out, _ = run(*arguments, "--html", str(tmp_path / "page.html"))
    assert code == 0 and (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explain", "sofmax"], "there is no primitive 'sofmax': did you mean softmax?"),
        (["check", "exp", "expp"], "did you mean exp?"),
        (["compare", "exp"], "exp has no fused twin"),
        (["exercise", "atention"], "did you mean attention?"),
        (["exercise", "--grade", "nothing.py"], "nothing.py cannot be read"),
        (["exercise", "exp", "--grade", "x.py"], "not both"),
        (["trace", "--run", "nowhere"], "nowhere is no folder of a run"),
        (["explain", "exp", "--html", "/proc/none/page.html"], "cannot be written"),
        (["report", "--out", "/proc/none/page.html"], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, sentence, monkeypatch):
    monkeypatch.setattr("lab.report_page.report_parts", list)
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_exercises_are_written_and_graded(run, tmp_path):
    code, out, _ = run("exercise", "exp")
    assert code == 0 and (tmp_path / "exercise_exp.py").exists() and "--grade" in out
    assert run("exercise", "exp")[0] == 2
    code, out, _ = run("exercise", "--grade", "exercise_exp.py")
    assert code == 1 and "not written yet" in out


def test_unknown_commands_are_refused(run):
    code, out, err = run("explian", "exp")
    assert code == 2 and "explain" in err and out == ""


def test_the_page_about_the_lab_names_commands_that_exist_and_prints_what_they_print(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "lab.md").read_text()
    commands = re.findall(r"^python -m lab (.+)$", text, flags=re.MULTILINE)
    assert {parser().parse_args(shlex.split(line)).run.__name__ for line in commands} >= {"exercise", "trace"}
    assert {line.split()[0] for line in commands} == set(lab.__all__) - {"grade", "ladder"}
    path = lab.exercise("softmax").path
    empty = 'raise NotImplementedError("write me")'
    path.write_text(path.read_text().replace(empty, "return (saved[0] * g,)"))
    assert repr(lab.grade(path)).split("\n\nHint")[0] in text
