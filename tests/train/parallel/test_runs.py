"""Whole runs by several ranks: the same training, and checkpoints that any number of ranks goes on from."""

import pytest

import tinygrad_ds as tg
from tests.train.parallel.launching import finish, start
from tests.train.test_main import call, flags, text  # noqa: F401  a fixture
from train.checkpoint import Checkpoints, load_model
from train.metrics import read_metrics

pytestmark = pytest.mark.mpi
SIZES = {"num_hidden_layers": 4, "micro_batch": 4, "save_every": 2, "evaluate_every": 4}  # four steps
KEYS = ("loss", "main", "mtp", "balance", "grad_norm", "lr", "done", "total", "step")


def until(step, ranks, *arguments):
    """A run on so many ranks that is killed when `step` begins; what it said."""
    fault = ("-m", "tests.train.parallel.faults", "kill", ranks - 1, step)
    code, out, errors = finish(start(ranks, *fault, *arguments))
    assert code == 9, errors
    return out


def same(run, other):
    """Metrics and weights agree as float32 lets them, whoever computed them."""
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (run, other))
    for mine, yours in zip(ours, theirs, strict=True):
        for key in KEYS:
            assert mine[key] == pytest.approx(yours[key], rel=1e-3), (mine["step"], key)
        assert mine["loads"].keys() == yours["loads"].keys()
        assert mine.get("held_out", 0.0) == pytest.approx(yours.get("held_out", 0.0), rel=1e-4)
        norms, others = mine.get("grad_norms", {}), yours.get("grad_norms", {})
        assert norms == pytest.approx(others, rel=1e-2)
    one, two = (load_model(Checkpoints(folder / "checkpoints").latest()) for folder in (run, other))
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert abs(a.data - b.data).max() < 1e-2 * abs(b.data).max(), name


def alone(text, folder, monkeypatch, **changes):  # noqa: F811
    """A run in one process from beginning to end."""
    with tg.using(kernels="reference"):
        given = flags(**SIZES | changes)
        assert call("--text", text, "--out", folder, *given, monkeypatch=monkeypatch) == 0
    return folder


def test_one_process_goes_on_where_two_ranks_were_killed(text, tmp_path, monkeypatch):  # noqa: F811
    run = tmp_path / "run"
    given = flags(**SIZES, pipeline="dualpipe")
    out = until(3, 2, "--text", text, "--out", run, *given, "--shard-optimizer")
    assert out.count("reading text") == 1  # one rank speaks
    with tg.using(kernels="reference"):
        assert call("--resume", run, monkeypatch=monkeypatch) == 0
    same(run, alone(text, tmp_path / "alone", monkeypatch))


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_from_any_other(text, tmp_path, monkeypatch):  # noqa: F811
    """One process, four ranks, two."""
    run, longer = tmp_path / "run", {"tokens": 1536, "micro_batch": 2}
    sharing = ("--expert-ranks", 2, "--redundant-experts", 2, "--shard-optimizer", "--place-every", 1)
    until(3, 1, "--text", text, "--out", run, *flags(**SIZES | longer))
    out = until(5, 4, "--resume", run, "--pipeline", "dualpipe_v", "--pipeline-ranks", 2, *sharing)
    assert "step-00000002" in out
    code, out, errors = finish(start(2, "-m", "train", "--resume", run, "--pipeline", "zb1p"))
    assert code == 0 and "step-00000004" in out, errors
    same(run, alone(text, tmp_path / "alone", monkeypatch, **longer))
