"""What `--device` does to every command, where there is no GPU."""

import sys

import pytest

from tinygrad_ds import command, device, settings


@pytest.fixture
def run(monkeypatch):
    """Call a command with arguments: what it was left with, and on which device; None where it never ran."""

    def missing():
        raise device.DeviceMissing("no GPU here")

    monkeypatch.setattr(device, "_cupy", missing)

    def called(*arguments):
        seen = []
        monkeypatch.setattr("sys.argv", ["program", *arguments])

        @command.with_device
        def main():
            seen.append((sys.argv[1:], settings.current().device))

        try:
            main()
        except SystemExit as leave:
            assert leave.code == 2
        return seen[0] if seen else None

    return called


@pytest.mark.parametrize("given", [["--device", "cpu"], ["--device=cpu"], []])
def test_a_command_never_sees_the_flag(run, given):
    assert run("train", *given, "--tokens", "5") == (["train", "--tokens", "5"], "cpu")


@pytest.mark.parametrize("given", [["--device", "cuda"], ["--device=cuda"]])
def test_without_a_gpu_one_sentence_says_so(run, capsys, given):
    assert run("train", *given) is None
    assert capsys.readouterr().err == "error: no GPU here\n"


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_needs_no_gpu(run, capsys, asked):
    assert run("train", "--device", "cuda", asked) == (["train", asked], "cpu")
    with settings.using(device="cuda"):
        assert run(asked) == ([asked], "cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("given", [["--device", "tpu"], ["--device=tpu"], ["--device"]])
def test_a_device_that_is_none_is_refused(run, capsys, given):
    assert run("train", *given) is None
    name = "" if given == ["--device"] else "tpu"
    assert capsys.readouterr().err == f"error: device is {name!r} but must be cpu or cuda\n"
