from dataclasses import replace

import pytest

from train.config import Config, Parallel
from train.errors import UserError
from train.learning_rate import Schedule
from train.parallel.crew import make_team
from train.parallel.layout import check_batches, make_layout


def test_ranks_stand_in_lines_and_share_experts_across_them():
    """8 ranks: lines 0 1 | 2 3 | 4 5 | 6 7; ranks of one position in two neighbouring lines share experts."""
    settings = Parallel(pipeline="dualpipe", pipeline_ranks=2, expert_ranks=2)
    layouts = [make_layout(settings, rank, 8) for rank in range(8)]
    assert [(each.line, each.position) for each in layouts] == [
        (line, position) for line in range(4) for position in range(2)
    ]
    assert [each.mates() for each in layouts[::2]] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [each.experts() for each in layouts] == [
        [0, 2],
        [1, 3],
        [0, 2],
        [1, 3],
        [4, 6],
        [5, 7],
        [4, 6],
        [5, 7],
    ]


def test_stages_get_consecutive_layers_and_the_last_ones_no_more():
    line = [make_layout(Parallel(pipeline="zb1p"), rank, 3).stages(8) for rank in range(3)]
    assert line == [{0: range(0, 3)}, {1: range(3, 6)}, {2: range(6, 8)}]
    bent = [make_layout(Parallel(pipeline="dualpipe_v"), rank, 2).stages(4) for rank in range(2)]
    assert bent == [{0: range(0, 1), 3: range(3, 4)}, {1: range(1, 2), 2: range(2, 3)}]
    copies = [make_layout(Parallel(pipeline="dualpipe"), rank, 2).stages(2) for rank in range(2)]
    assert copies[0] == copies[1] == {0: range(0, 1), 1: range(1, 2)}


@pytest.mark.parametrize(
    ("settings", "ranks", "sentence"),
    [
        (Parallel(pipeline_ranks=2), 4, "pipeline is none"),
        (Parallel(expert_ranks=3), 4, "a multiple of 3"),
        (Parallel(pipeline="dualpipe", pipeline_ranks=4, expert_ranks=2), 4, "a multiple of 8"),
    ],
)
def test_numbers_of_ranks_that_do_not_fit_are_refused(settings, ranks, sentence):
    with pytest.raises(UserError, match=sentence):
        make_layout(settings, 0, ranks)


@pytest.mark.parametrize(
    ("pipeline", "schedule", "sentence"),
    [
        ("dualpipe", Schedule(batch=12, first_batch=0), "3 micro-batches, but half .* change --batch"),
        ("dualpipe", Schedule(batch=8, first_batch=0), "2 micro-batches for 2 ranks"),
        (
            "dualpipe",
            Schedule(batch=32, first_batch=16),
            "a batch of 17 sequences makes 5 micro-batches of 4",
        ),
        ("none", Schedule(batch=12, first_batch=0), "2 pipelines need a multiple of 2"),
    ],
)
def test_batches_that_do_not_fit_are_refused(pipeline, schedule, sentence):
    settings = Parallel(pipeline=pipeline)
    config = replace(Config(), micro_batch=4, schedule=schedule, parallel=settings)
    with pytest.raises(UserError, match=sentence):
        check_batches(config, make_layout(settings, 0, 2))


def test_one_process_refuses_what_needs_several(monkeypatch):
    monkeypatch.setattr("train.parallel.launch.MARKS", ())
    with pytest.raises(UserError, match="start several by `mpiexec -n 4"):
        make_team(replace(Config(), parallel=Parallel(pipeline="dualpipe")), print)


@pytest.mark.parametrize("name", ["pipeline_ranks", "expert_ranks", "redundant_experts", "timeout"])
def test_settings_that_cannot_be_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is -1"):
        Parallel(**{name: -1})
