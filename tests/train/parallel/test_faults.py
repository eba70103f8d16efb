"""However one rank ends, all end, and what was saved is whole."""

import re
import sys

import pytest

from tests.train.parallel.launching import finish, start
from tests.train.test_main import flags, text  # noqa: F401  a fixture
from train.checkpoint import Checkpoints, load_model

pytestmark = pytest.mark.mpi
FAULTS = ("-m", "tests.train.parallel.faults")


def command(text, folder, **changes):  # noqa: F811
    changes = {"pipeline": "one_f_one_b", "tokens": 2048, "micro_batch": 4} | changes
    return ["--text", text, "--out", folder, *flags(**changes)]


def fails(text, folder, fault, rank, **changes):  # noqa: F811
    """Exit code and errors of a run in which a rank meets a fault at its fourth step."""
    process = start(2, *FAULTS, fault, rank, 4, *command(text, folder, **changes))
    code, _, errors = finish(process)
    saved = Checkpoints(folder / "checkpoints").all()
    assert [path.name for path in saved] == ["step-00000002"]
    load_model(saved[0])
    return code, errors


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others(text, tmp_path, rank):  # noqa: F811
    code, _ = fails(text, tmp_path / "run", "kill", rank)
    assert code == 9


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_is_shown_first_and_ends_the_others(text, tmp_path, rank):  # noqa: F811
    code, errors = fails(text, tmp_path / "run", "raise", rank)
    assert code == 1
    assert errors.startswith(f"rank {rank} of 2 failed:\nTraceback")
    assert "the fault of this test" in errors and errors.count("Traceback") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "waits"),
    [
        (1, "rank 0 has waited 3 seconds for the gradient of micro-batch 0 from rank 1 to stage 0, for step"),
        (0, "rank 1 has waited 3 seconds for the output of micro-batch 0 from rank 0 to stage 1, for step"),
    ],
)
def test_a_rank_that_is_stuck_is_named_by_those_that_wait(text, tmp_path, rank, waits):  # noqa: F811
    code, errors = fails(text, tmp_path / "run", "sleep", rank, timeout=3)
    assert code == 1
    assert errors.startswith(waits) and "Traceback" not in errors


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "meet",
            "has waited 3 seconds for a communicator of ranks 0, 1: rank {} did not come; a rank is stuck",
        ),
        pytest.param(
            "settings",
            "has waited 3 seconds for the settings of all ranks, from ranks 0, 1: rank {} gave no answer;",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "make",
            "has waited 3 seconds for a communicator of ranks 0, 1, which MPI does not make although",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_does_not_come_where_ranks_meet_is_named(text, tmp_path, fault, says, rank):  # noqa: F811
    given = command(text, tmp_path / "run", timeout=3)
    code, _, errors = finish(start(2, *FAULTS, fault, rank, 0, *given))
    assert code == 1
    assert errors.startswith(f"rank {1 - rank} {says.format(rank)}") and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_no_part_of_a_step_may_take_ten_times_as_long(text, tmp_path, rank):  # noqa: F811
    given = command(text, tmp_path / "run", timeout=3, pipeline="none")
    code, _, errors = finish(start(2, *FAULTS, "late", rank, 0, *given, "--expert-ranks", 2))
    assert code == 0, errors


@pytest.mark.slow
def test_a_rank_that_never_begins_ends_the_others(text, tmp_path):  # noqa: F811
    """MPI begins on all ranks or on none, and does not say on which it has."""
    code, _, errors = finish(start(2, *FAULTS, "begin", 1, 0, *command(text, tmp_path / "run")))
    assert code and "Timeout (0:00:03)!" in errors and "in world" in errors


def test_different_settings_are_told_in_a_sentence(text, tmp_path):  # noqa: F811
    same = command(text, tmp_path / "run")
    second = [":", "-n", "1", sys.executable, "-m", "train", *same, "--lr", "0.2"]
    code, out, errors = finish(start(1, "-m", "train", *same, "--lr", "0.1", *second))
    assert (code, out) == (2, "")
    assert errors == "error: lr is 0.1 on rank 0 but 0.2 on rank 1: start all ranks with the same settings\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_one_rank_alone_cannot_read_ends_the_others(text, tmp_path):  # noqa: F811
    same = command(text, tmp_path / "run")
    second = [":", "-n", "1", sys.executable, "-m", "train", *same, "--nonsense"]
    code, _, errors = finish(start(1, "-m", "train", *same, *second))
    assert code == 2
    assert re.search("rank 1 of 2: .*nonsense", errors, re.DOTALL) and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pipeline": "dualpipe_v"}, "the network has 2 layers but the pipeline 4 stages"),
        (
            {"pipeline": "dualpipe", "batch": 12},
            "dualpipe has 3 micro-batches, but half of them enter at each",
        ),
        ({"pipeline": "dualpipe", "batch": 8}, "dualpipe has 2 micro-batches for 2 ranks"),
        ({"pipeline": "none", "batch": 12}, "2 pipelines need a multiple of 2"),
        ({"text": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(text, tmp_path, changes, sentence):  # noqa: F811
    given = command(changes.pop("text", text), tmp_path / "run", **changes)
    code, _, errors = finish(start(2, "-m", "train", *given))
    assert code == 2 and errors.count("\n") == 1 and sentence in errors
    assert not (tmp_path / "run").exists()
