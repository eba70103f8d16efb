import io

import numpy as np
from rich.console import Console

from tinygrad_ds.kernels import progress as compiling
from train import progress
from train.progress import Display, describe, minutes
from train.trainer import State

RECORD = {
    "step": 7,
    "done": 100.0,
    "total": 400.0,
    "seconds": 61.0,
    "loss": 5.0,
    "main": 3.25,
    "loads": {"a": np.array([1, 1, 2]), "b": np.array([9, 0, 0])},
}


def display(terminal):
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=terminal, width=200, soft_wrap=True)), file


def test_line_names_what_a_person_wants_to_know():
    line = " ".join(describe(RECORD, held_out=2.5, speed=10.0))
    for part in (
        "61 s",
        "step 7",
        "loss 3.250",
        "held-out 2.500 bits/byte",
        "expert 3.0x",
        "10 tokens/s",
        "0:30 left",
    ):
        assert part in line
    assert minutes(125.4) == "2:05" and minutes(-3) == "0:00"


def test_plain_lines_are_few_and_the_last_step_always_has_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])
    shown, file = display(terminal=False)
    with shown:
        for step in range(1, 101):
            now[0] += 1.0
            shown(State(total=100.0, step=step, done=float(step)), {**RECORD, "step": step, "done": step})
    lines = file.getvalue().splitlines()
    steps = [int(line.split("step ")[1].split()[0]) for line in lines]
    assert steps[0] == 1 and steps[-1] == 100 and 10 <= len(steps) <= 13
    assert "1 tokens/s" in lines[-1] and "\x1b" not in file.getvalue()


def test_held_out_figure_stays_until_the_next_one():
    shown, file = display(terminal=False)
    shown(State(total=9.0, done=1.0), {**RECORD, "held_out": 4.5})
    shown(State(total=9.0, done=9.0), RECORD)
    assert file.getvalue().count("held-out 4.500 bits/byte") == 2


def test_compiling_is_said_and_only_inside():
    for terminal in (False, True):
        shown, file = display(terminal)
        with shown:
            compiling.listener("compiling rmsnorm (float32) ...")
        assert "compiling rmsnorm (float32)" in file.getvalue() and compiling.listener is None


def test_terminal_gets_a_bar():
    shown, file = display(terminal=True)
    with shown:
        shown(State(total=400.0, done=100.0), RECORD)
    assert "step 7" in file.getvalue() and "\x1b[" in file.getvalue()


def test_two_lines_of_a_terminal_fit_eighty_columns():
    long = {**RECORD, "seconds": 99999.0, "step": 99999, "main": 10.1234}
    for line in describe(long, held_out=12.345, speed=123456.0):
        assert len(line) + 20 + 1 <= 80  # the bar and a space
