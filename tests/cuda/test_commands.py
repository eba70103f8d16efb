"""Whole commands on the device: a run from text to report, its resume, text from it, the lab."""

import sys

import numpy as np
import pytest

import tinygrad_ds as tg
from lab import __main__ as lab_program
from tests.train.test_main import flags
from tinygrad_ds import settings
from train import __main__ as train_program
from train.metrics import read_metrics

pytestmark = pytest.mark.cuda
WORDS = "the quick brown fox jumps over a lazy dog and back again while nobody else looks at it".split()


@pytest.fixture
def call(monkeypatch):
    """Run a program in this process; its exit code."""

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        try:
            program.main()
        except SystemExit as leave:
            return leave.code
        return 0

    return run


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, rng = tmp_path / "text", np.random.default_rng(0)
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(WORDS, 800)))
    return folder


def test_a_run_on_the_device_is_the_run_on_the_host(call, text, tmp_path, capsys):
    runs = {}
    for device in ("cpu", "cuda"):
        runs[device] = tmp_path / device
        arguments = *flags(tokens=512, evaluate_every=100), "--text", text, "--out", runs[device]
        with tg.using(kernels="reference" if device == "cpu" else "fused"):
            assert call(train_program, *arguments, "--device", device) == 0
        assert settings.current().device == "cpu"
    here, there = (read_metrics(runs[device] / "metrics.jsonl") for device in runs)
    assert len(here) == len(there) > 1
    for one, other in zip(here, there):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-2)
    assert (runs["cuda"] / "report.html").exists()
    capsys.readouterr()

    arguments = "--resume", runs["cuda"], "--tokens", "1024", "--device=cuda"
    assert call(train_program, *arguments) == 0
    assert read_metrics(runs["cuda"] / "metrics.jsonl")[-1]["done"] >= 1024
    capsys.readouterr()
    written = []
    for device in ("cpu", "cuda"):
        arguments = "generate", runs["cuda"], "--tokens", "5", "--temperature", "0", "--device", device
        with tg.using(kernels="reference" if device == "cpu" else "fused"):
            assert call(train_program, *arguments, "--prompt", "The") == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] and written[0].startswith("The")


def test_a_run_in_fp8_on_the_device_is_that_on_the_host(call, text, tmp_path):
    """Moments in bfloat16, blocks computed again. What rounds otherwise in FP8 parts the runs a little."""
    runs = {}
    for device in ("cpu", "cuda"):
        runs[device] = tmp_path / device
        arguments = *flags(tokens=512, evaluate_every=100), "--text", text, "--out", runs[device]
        fp8 = "--precision", "fp8", "--recompute", "--optimizer", "adamw", "--lr", "0.003"
        assert call(train_program, *arguments, *fp8, "--device", device) == 0
    here, there = (read_metrics(runs[device] / "metrics.jsonl") for device in runs)
    assert len(here) == len(there) > 1
    for one, other in zip(here, there):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-2)
        assert one["infinities"] == other["infinities"] == 0


@pytest.mark.parametrize("arguments", ["list", "explain rmsnorm", "check softmax", "trace"])
def test_the_lab_runs_on_the_device(arguments, call, capsys):
    assert call(lab_program, *arguments.split(), "--device", "cuda") == 0
    assert capsys.readouterr().out


def test_a_device_that_is_none_is_refused(call, capsys):
    assert call(lab_program, "list", "--device", "tpu") == 2
    assert "device is 'tpu' but must be cpu or cuda" in capsys.readouterr().err
