"""`python -m train schedule` in this process: what it prints, what it writes, what it refuses."""

import json

import pytest

from train import __main__ as program
from train.errors import UserError
from train.pipeline import schedule
from train.pipeline.steps import write


def test_a_schedule_is_printed_checked_and_drawn(tmp_path, capsys):
    svg, trace = tmp_path / "new" / "chart.svg", tmp_path / "trace.json"
    sizes = ["--ranks", "4", "--microbatches", "8"]
    program.command(["schedule", "dualpipe", *sizes, "--svg", str(svg), "--trace", str(trace)])
    printed = capsys.readouterr().out
    assert printed.startswith(write(schedule.dualpipe(4, 8)))
    assert "length 26, bubble 2 (7.7%), at most 5 inputs alive on a rank" in printed
    assert "48 messages" in printed and "with one receive asked for ahead" in printed
    assert svg.read_text().startswith("<svg") and len(json.loads(trace.read_text())["traceEvents"]) > 60


def test_times_come_from_flags(capsys):
    times = ["--F", "1", "--I", "2", "--W", "1", "--FB", "4"]
    program.command(["schedule", "dualpipe", "--ranks", "8", "--microbatches", "20", *times])
    printed = capsys.readouterr().out
    assert "bubble 11 " in printed and "the published formula says 12: 1 less" in printed
    program.command(["schedule", "zb1p", "--ranks", "8", "--microbatches", "20", "--I", "0.5", "--F", "1"])
    assert "the published formula says 3.5: 3.5 more" in capsys.readouterr().out
    program.command(["schedule", "dualpipe_v", "--ranks", "3", "--microbatches", "7"])
    assert "the bubble is that of the published formula, 4" in capsys.readouterr().out
    slow = ["--F", "1", "2", "--all-to-all", "0.5", "--slowdown", "1", "3", "--communication", "0.25"]
    program.command(["schedule", "gpipe", "--ranks", "2", "--microbatches", "1", *slow])
    length = 1.5 + 0.25 + 3 * 2.5 + 3 * 2.5 + 0.25 + 2.5
    printed = capsys.readouterr().out
    assert f"length {length:g}," in printed and "formula" not in printed


def test_a_schedule_may_come_from_a_file(tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text("0F0, 0B0\n1F0, 1B0\n")
    program.command(["schedule", str(file)])
    assert "length 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["dualpipe", "--ranks", "3"], "dualpipe has 3 ranks, but two directions need pairs"),
        (["dualpip"], "'dualpip' is neither a schedule .* nor a file of one"),
        (["zb1p", "--ranks", "2", "--F", "1", "2", "3"], "F has 3 numbers for 2 stages"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(arguments, sentence, tmp_path):
    svg = tmp_path / "chart.svg"
    with pytest.raises(UserError, match=sentence):
        program.command(["schedule", *arguments, "--svg", str(svg)])
    assert not svg.exists()


def test_a_file_that_cannot_run_is_refused(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("0F0,0B0\n1B0,1F0\n")
    with pytest.raises(UserError, match="rank 1 does 1B0, its step 0, before 1F0"):
        program.command(["schedule", str(file)])
