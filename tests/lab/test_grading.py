"""The grader's process: whatever a file does, it gets a clear answer and does no harm."""

import subprocess
import sys

import pytest

import lab
from train.errors import UserError


@pytest.fixture
def answered(tmp_path):
    """Write an answer to an exercise: the body of backward, or with `whole` all of the file."""

    def write(name, body="", whole=None):
        path = lab.exercise(name).path
        empty = '    raise NotImplementedError("write me")\n'
        path.write_text(path.read_text().replace(empty, body) if whole is None else whole)
        return path

    return write


def test_an_exercise_is_never_overwritten(answered):
    answered("softmax", "    return 'work of an evening'\n")
    with pytest.raises(UserError, match="exists"):
        lab.exercise("softmax")


def test_an_empty_answer(answered):
    grade = lab.grade(answered("softmax", '    raise NotImplementedError("write me")\n'))
    assert (grade.verdict.kind, grade.passed) == ("empty", False)


def test_a_dropped_term_is_called_by_its_name(answered):
    body = "    y, axis = saved\n    print('looked at', axis)\n    return (y * g,)\n"
    text = repr(lab.grade(answered("softmax", body)))
    assert "second term of the Jacobian is dropped" in text
    assert "The smallest case that fails" in text and "<- wrong" in text and "looked at" in text


def test_a_syntax_error_names_its_line(answered):
    grade = lab.grade(answered("softmax", "    return (\n"))
    assert grade.verdict.kind == "syntax" and "line" in grade.verdict.words
    assert grade.exercise == "softmax"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("    import os\n    os._exit(3)\n", "crash"),
        ("    raise SystemExit\n", "crash"),
        ("    return (np.ones((1 << 16, 1 << 16)),)\n", "memory"),
        ("    import ctypes\n    ctypes.string_at(0)\n", "crash"),
    ],
)
def test_a_crash_is_told_and_does_not_spread(answered, body, kind):
    grade = lab.grade(answered("exp", body))
    assert grade.verdict.kind == kind and not grade.passed
    assert lab.ladder().done == {}


@pytest.mark.parametrize("where", ["backward", "file"])
def test_an_endless_loop_is_ended(answered, where, monkeypatch):
    monkeypatch.setattr("lab.exercises.grading.WALL", 4.0)
    if where == "backward":
        path = answered("exp", "    while True:\n        pass\n")
    else:
        path = answered("exp", whole='EXERCISE = "exp"\nwhile True:\n    pass\n')
    grade = lab.grade(path)
    assert grade.verdict.kind == "hang" and "endless loop" in grade.verdict.words


def test_a_file_without_its_functions(answered):
    assert (
        "no function backward"
        in lab.grade(answered("exp", whole='EXERCISE = "exp"\ndef forward(x): return x, x\n')).verdict.words
    )


def test_files_that_are_no_exercise(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="which exercise"):
        lab.grade(tmp_path / "other.py")
    with pytest.raises(UserError, match="cannot be read"):
        lab.grade(tmp_path / "missing.py")
    (tmp_path / "odd.py").write_text('EXERCISE = "softmaxx"\n')
    with pytest.raises(UserError, match="did you mean softmax"):
        lab.grade(tmp_path / "odd.py")


def test_the_process_has_one_thread_and_neither_numba_nor_matplotlib():
    code = "import sys, lab.exercises.process; print({'numba', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=lab.__path__[0] + "/.."
    )
    assert done.stdout.strip() == "set()", done.stderr
