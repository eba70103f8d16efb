import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from layers import DeepSeekModel
from train import __main__ as program
from train.checkpoint import Checkpoints
from train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "intermediate_size": 20,
    "moe_intermediate_size": 10,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "time": 16,
    "tokens": 1024,
    "batch": 16,
    "micro_batch": 8,
    "warmup_steps": 1,
    "save_every": 2,
    "evaluate_every": 2,
}


def flags(**changes):
    return [
        part
        for name, value in (SMALL | changes).items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def call(*arguments, monkeypatch):
    """Run the program in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    try:
        program.main()
    except SystemExit as leave:
        return leave.code
    return 0


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Sixty documents of made-up sentences."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 8))) for _ in range(200)]
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        (folder / f"{i:02d}.txt").write_text(" ".join(rng.choice(words, 80)) + ".\n")
    return folder


@pytest.fixture(scope="session")
def finished(text, tmp_path_factory):
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    with pytest.MonkeyPatch.context() as patch:
        assert call("--text", text, "--out", folder, *flags(), monkeypatch=patch) == 0
    return folder


def test_run_leaves_everything(finished):
    expected = {"config.toml", "data.json", "metrics.jsonl", "report.html", "results.json", "tokenizer.json"}
    assert {path.name for path in finished.iterdir()} == expected | {"checkpoints"}
    records = read_metrics(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all({"main", "mtp", "balance", "grad_norm", "lr", "loads"} <= record.keys() for record in records)
    assert sum("sample" in record for record in records) == 3
    results = json.loads((finished / "results.json").read_text())
    assert (
        results["tokens"] == 1024 and 0 < results["bits_per_byte"] < 10 and "xz -9e" in results["baselines"]
    )
    assert {"forward", "backward", "held-out text", "baselines", "text and tokens"} <= results[
        "phases"
    ].keys()
    assert (finished / "report.html").read_text("utf-8").count("<svg") == 5
    assert len(json.loads((finished / "data.json").read_text())["sha256"]) == 64


def test_run_repeats_to_the_bit(finished, text, tmp_path, monkeypatch):
    again = tmp_path / "again"
    assert call("--config", finished / "config.toml", "--out", again, monkeypatch=monkeypatch) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (Checkpoints(run / "checkpoints").latest() / name for run in (finished, again))
        assert ours.read_bytes() == theirs.read_bytes()


def test_recomputing_trains_the_same_to_the_bit(finished, tmp_path, monkeypatch):
    again, arguments = tmp_path / "again", ("--config", finished / "config.toml", "--recompute")
    assert call(*arguments, "--out", again, monkeypatch=monkeypatch) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (Checkpoints(run / "checkpoints").latest() / name for run in (finished, again))
        assert ours.read_bytes() == theirs.read_bytes()
    assert "recompute = true" in (again / "config.toml").read_text()


def test_killed_run_goes_on_to_the_same_end(finished, tmp_path, monkeypatch, capsys):
    """What a kill after step 3 leaves: the checkpoint of step 2, and metrics of a step that is done again."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("report.html", "results.json"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:3]))
    (run / "checkpoints/step-00000004").rename(run / "checkpoints/.step-00000003.part")
    assert call("--resume", run, monkeypatch=monkeypatch) == 0
    assert "step-00000002" in capsys.readouterr().out
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (run / "checkpoints/step-00000004" / name).read_bytes() == (
            finished / "checkpoints/step-00000004" / name
        ).read_bytes()
    ours, theirs = read_metrics(run / "metrics.jsonl"), read_metrics(finished / "metrics.jsonl")
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]


def test_text_is_written_as_it_is_generated(finished, monkeypatch, capsys):
    options = ["--prompt", "abc", "--tokens", 6, "--seed", 3]
    assert call("generate", finished, *options, monkeypatch=monkeypatch) == 0
    first = capsys.readouterr().out
    assert first.startswith("abc") and len(first) > 4
    call("generate", finished, *options, monkeypatch=monkeypatch)
    assert capsys.readouterr().out == first


BAD_INPUT = {
    "text too short": ("--text {files}/short.txt", "at least 20,000 bytes"),
    "not UTF-8": ("--text {files}/latin.txt", "is not UTF-8: byte 0xf6"),
    "cut gzip": ("--text {files}/cut.gz", "damaged or no gzip"),
    "missing path": ("--text {files}/nowhere", "does not exist"),
    "impossible network": ("--num-experts-per-tok 99", "num_experts_per_tok is 99"),
    "no room for bytes": ("--text {text} --vocab-size 100", "vocab_size is 100"),
    "impossible schedule": ("--batch 0", "batch is 0"),
    "impossible number": ("--tokens 0", "tokens is 0 but must be at least 1"),
    "recomputed messages": ("--recompute --expert-ranks 2", "recompute is on and expert_ranks 2"),
    "impossible threads": ("--threads 0", "threads is 0 but at least 1"),
    "no folder for the run": ("--text {text} --out {files}/short.txt/run", "cannot be made: Not a directory"),
    "unknown setting": ("--config {files}/wrong.toml", "'tokns'"),
    "missing file": ("--config {files}/none.toml", "does not exist"),
    "no run": ("--resume {files}", "config.toml does not exist"),
    "finished run": ("--resume {finished}", "ask for more, such as --tokens 2048"),
    "other network": ("--resume {finished} --hidden-size 48", "hidden_size is 16 .* cannot become 48"),
    "nothing to generate with": ("generate {files}", "no folder of a run"),
    "prompt too long": (
        "generate {finished} --prompt 'xyz xyz xyz xyz xyz xyz xyz xyz'",
        "the network was trained",
    ),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Files that cannot be used."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "short.txt").write_text("too short")
    (folder / "latin.txt").write_bytes("Größe".encode("latin-1") * 9000)
    (folder / "cut.gz").write_bytes(gzip.compress(bytes(range(256)) * 99)[:50])
    (folder / "wrong.toml").write_text("tokns = 3\n")
    return folder


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_one_sentence_and_code_2(name, files, text, finished, tmp_path, monkeypatch, capsys):
    arguments, sentence = BAD_INPUT[name]
    arguments = shlex.split(arguments.format(files=files, text=text, finished=finished))
    if arguments[0] != "generate" and "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"error: [^\n]*{sentence}[^\n]*\n", said), said
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_run_that_exists_is_not_overwritten(finished, text, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert call("--text", text, "--out", finished, *flags(), monkeypatch=monkeypatch) == 2
    assert re.fullmatch(r"error: .*done exists: .*--resume.*\n", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_changed_text_cannot_go_on(finished, text, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = (run / "config.toml").read_text()
    (tmp_path / "other").mkdir()
    for path in text.iterdir():
        (tmp_path / "other" / path.name).write_text(path.read_text() + "more\n")
    (run / "config.toml").write_text(settings.replace(str(text), str(tmp_path / "other")))
    assert call("--resume", run, "--tokens", 2048, monkeypatch=monkeypatch) == 2
    assert "the text is not what" in capsys.readouterr().err


def test_finished_run_can_be_lengthened(finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert call("--resume", run, "--tokens", 1536, monkeypatch=monkeypatch) == 0
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_nan_stops_with_a_sentence_and_keeps_the_checkpoint(text, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    real = DeepSeekModel.losses

    def broken(model, *args, **options):
        found = real(model, *args, **options)
        return found._replace(total=found.total * (np.nan if (out / "checkpoints").exists() else 1.0))

    monkeypatch.setattr(DeepSeekModel, "losses", broken)
    assert call("--text", text, "--out", out, *flags(), monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert re.search(r"stopped: step 3: the loss is nan.*step-00000002 is whole", said)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]


def test_program_by_itself_explains_and_refuses():
    """In a process of its own, as a person calls it."""
    helped = subprocess.run(
        [sys.executable, "-m", "train", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert helped.returncode == 0 and all(
        name in helped.stdout for name in ("--text", "--resume", "demo", "generate")
    )
    refused = subprocess.run(
        [sys.executable, "-m", "train", "--text", "/nowhere"], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error: /nowhere does not exist")
    assert not (ROOT / "runs" / "train").exists()
