"""The same schedules from torch.distributed.pipelining: the orders, and how long its other ones take here."""

from unittest import mock

import pytest
from torch.distributed.pipelining import _schedule_visualizer as visualizer
from torch.distributed.pipelining import schedules
from torch.distributed.pipelining.stage import PipelineStage

from train.pipeline import check, schedule, simulate
from train.pipeline.steps import parse

pytestmark = pytest.mark.oracle

SIZES = [(2, 4), (2, 6), (4, 8), (4, 12), (6, 12), (8, 24)]


def stage(rank, ranks, stages):
    """As much of a stage as the making of a schedule asks for."""
    made = mock.create_autospec(PipelineStage, instance=True)
    made.group_rank, made.group_size, made.num_stages, made.stage_index = rank, ranks, stages, rank
    made.is_first, made.is_last, made.submod = rank == 0, rank == stages - 1, None
    made.has_backward = True
    return made


def listed(name, ranks, microbatches, stages_per_rank):
    """The order that a schedule of several stages to a rank writes down; its waiting places are left out."""
    stages = [stage(0, ranks, ranks * stages_per_rank) for _ in range(stages_per_rank)]
    made = getattr(schedules, name)(stages, microbatches)
    return [[action for action in made.pipeline_order[rank] if action] for rank in range(ranks)]


def ours(orders):
    """The same as our steps."""
    return [[parse(str(action)) for action in rank] for rank in orders]


def executed(name, rank, ranks, microbatches):
    """What a schedule of one stage to a rank does: its loop is run with a stage that only takes notes."""
    notes = []
    own = stage(rank, ranks, ranks)
    own.forward_one_chunk.side_effect = lambda m, *_, **__: notes.append(f"{rank}F{m}")
    own.backward_one_chunk.side_effect = lambda m, *_, **__: notes.append(f"{rank}B{m}")
    for empty in (own.get_fwd_recv_ops, own.get_fwd_send_ops, own.get_bwd_recv_ops, own.get_bwd_send_ops):
        empty.return_value = []
    made = getattr(schedules, name)(own, microbatches, loss_fn=lambda *_: None)
    parts = [()] * microbatches
    with (
        mock.patch.object(made, "_initialize_stage"),
        mock.patch.object(made, "_maybe_compute_loss"),
        mock.patch.object(made, "_maybe_get_loss"),
        mock.patch.object(made, "_update_losses"),
    ):
        made._step_microbatches(parts, [{}] * microbatches, parts, [])
    return notes


@pytest.mark.parametrize("ranks, microbatches", SIZES)
@pytest.mark.parametrize("name, make", [("Schedule1F1B", "one_f_one_b"), ("ScheduleGPipe", "gpipe")])
def test_schedules_of_one_stage_to_a_rank(name, make, ranks, microbatches):
    made = schedule.SCHEDULES[make](ranks, microbatches)
    for rank, steps in enumerate(made):
        assert executed(name, rank, ranks, microbatches) == [str(step) for step in steps]


@pytest.mark.parametrize("ranks, microbatches", SIZES)
def test_zero_bubble_with_one_stage_to_a_rank_is_zb1p(ranks, microbatches):
    theirs = ours(listed("ScheduleInterleavedZeroBubble", ranks, microbatches, 1))
    assert theirs == schedule.zb1p(ranks, microbatches)


@pytest.mark.parametrize("ranks, microbatches", [*SIZES, (1, 2), (3, 6), (3, 7), (5, 13)])
def test_dualpipe_v(ranks, microbatches):
    theirs = ours(listed("ScheduleDualPipeV", ranks, microbatches, 2))
    assert theirs == schedule.dualpipe_v(ranks, microbatches)


@pytest.mark.parametrize("ranks, microbatches", [(2, 4), (4, 8), (4, 12)])
@pytest.mark.parametrize("name", ["ScheduleInterleavedZeroBubble", "ScheduleInterleaved1F1B"])
def test_schedules_that_we_do_not_make_are_timed_alike(name, ranks, microbatches):
    """Torch's visualiser spaces an order out by its own clock."""
    order = listed(name, ranks, microbatches, 2)
    ends = [clock(rank) for rank in visualizer.add_schedule_op_spacing(order)]
    assert simulate(ours(order)).ends == ends


@pytest.mark.parametrize("ranks, microbatches", [(2, 4), (4, 8), (4, 12)])
@pytest.mark.parametrize(
    "name", ["ScheduleInterleavedZeroBubble", "ScheduleInterleaved1F1B", "ScheduleZBVZeroBubble"]
)
def test_schedules_that_we_do_not_make_pass_the_checker(name, ranks, microbatches):
    report = check(ours(listed(name, ranks, microbatches, 2)))
    assert (report.stages, report.microbatches) == (2 * ranks, microbatches)


def clock(spaced):
    """When every step ends: waiting takes 1, a whole backward pass 2, everything else 1."""
    now, ends = 0, []
    for action in spaced:
        now += 2 if action and "B" in str(action) else 1
        if action:
            ends.append(now)
    return ends
