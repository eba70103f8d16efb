"""The checker accepts the five schedules for all sizes and refuses what cannot run, never anything else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import UserError
from train.pipeline import Overlap, ScheduleError, check, schedule
from train.pipeline.checker import by_channel, channel, run
from train.pipeline.memory import most_alive
from train.pipeline.messages import plan
from train.pipeline.steps import read


@st.composite
def schedules(draw, most_ranks=6, most_more=6):
    """Any of the five, of any size that it has."""
    name = draw(st.sampled_from(sorted(schedule.SCHEDULES)))
    ranks = draw(st.integers(1, most_ranks))
    if name.startswith("dualpipe"):
        even = 2 if name == "dualpipe" else 1
        ranks *= even
        microbatches = 2 * ranks + even * draw(st.integers(0, most_more))
    else:
        microbatches = draw(st.integers(1, 2 * ranks + most_more))
    return schedule.SCHEDULES[name](ranks, microbatches)


def finishes(steps, seed):
    """Whether all ranks finish, by a machine that shares nothing with the checker.

    Every rank waits for the values that it needs and drops them where the next rank looks, each with its
    name; which rank moves next is drawn at random.
    """
    drawn = random.Random(seed)
    last = max(part.stage for rank in steps for step in rank for part in step.parts)
    values = {("output", -1, part.microbatch) for rank in steps for step in rank for part in step.parts}
    at = [0] * len(steps)

    def ready(part):
        s, m = part.stage, part.microbatch
        if part.kind == "F":
            return ("output", s - 1, m) in values
        if part.kind == "W":
            return ("half", s, m) in values
        return ("output", s, m) in values and (s == last or ("gradient", s + 1, m) in values)

    while True:
        able = [r for r, k in enumerate(at) if k < len(steps[r]) and all(map(ready, steps[r][k].parts))]
        if not able:
            return at == [len(rank) for rank in steps]
        rank = drawn.choice(able)
        for part in steps[rank][at[rank]].parts:
            s, m = part.stage, part.microbatch
            values.add({"F": ("output", s, m), "W": ("done", s, m)}.get(part.kind, ("gradient", s, m)))
            if part.kind == "I":
                values.add(("half", s, m))
        at[rank] += 1


def in_order(steps):
    """Whether every channel's messages are sent in the order in which they are taken."""
    return by_channel(plan(steps), "sends") == by_channel(plan(steps), "receives")


@given(schedules())
def test_all_schedules_of_all_sizes_pass(steps):
    report = check(steps)
    assert finishes(steps, seed=0)
    assert report.ahead <= 1, "one receive asked for ahead on each channel is enough for rendezvous"


@pytest.mark.parametrize("ranks", range(2, 17))
def test_peaks_are_those_of_the_table(ranks):
    for microbatches in (2 * ranks, 2 * ranks + 2, 5 * ranks + ranks % 2):
        assert max(most_alive(schedule.one_f_one_b(ranks, microbatches))) == ranks
        assert most_alive(schedule.zb1p(ranks, microbatches)) == [ranks] * ranks
        assert max(most_alive(schedule.dualpipe_v(ranks, microbatches))) == 2 * ranks + 1
        assert most_alive(schedule.gpipe(ranks, microbatches)) == [microbatches] * ranks
        if ranks % 2 == 0:
            assert max(most_alive(schedule.dualpipe(ranks, microbatches + microbatches % 2))) == ranks + 1


def test_report_counts():
    report = check(schedule.dualpipe(4, 8))
    assert (report.stages, report.microbatches) == (4, 8)
    assert report.messages == 8 * 2 * 3  # forward and backward over three borders
    assert report.alive == [5, 5, 5, 5]
    assert report.waiting == [1, 2, 2, 1]


@given(schedules(), st.data())
def test_a_schedule_without_one_of_its_steps_is_refused(steps, data):
    rank = data.draw(st.sampled_from([r for r, own in enumerate(steps) if own]))
    place = data.draw(st.integers(0, len(steps[rank]) - 1))
    dropped = steps[rank].pop(place)
    with pytest.raises(ScheduleError) as refused:
        check(steps)
    text = str(refused.value)
    if any(steps):
        assert "missing" in text and any(str(part) in text for part in dropped.parts)
    else:
        assert "no steps" in text


@given(schedules(), st.data())
def test_a_step_that_stands_twice_is_refused(steps, data):
    rank = data.draw(st.integers(0, len(steps) - 1))
    step = data.draw(st.sampled_from(steps[rank]))
    other = data.draw(st.integers(0, len(steps) - 1))
    steps[other].insert(data.draw(st.integers(0, len(steps[other]))), step)
    with pytest.raises(ScheduleError, match="stands 2 times"):
        check(steps)


@given(schedules(), st.data())
def test_a_swap_is_refused_exactly_where_it_cannot_run(steps, data):
    """Two steps of one rank change places. What depends on neither may move: that only costs time."""
    rank = data.draw(st.integers(0, len(steps) - 1))
    one, other = (data.draw(st.integers(0, len(steps[rank]) - 1)) for _ in range(2))
    steps[rank][one], steps[rank][other] = steps[rank][other], steps[rank][one]
    runs = all(finishes(steps, seed) for seed in range(3)) and in_order(steps)
    try:
        check(steps)
        passed, reason = True, ""
    except ScheduleError as refused:
        passed, reason = False, str(refused)
    assert passed == runs
    assert passed or "before" in reason or "waits" in reason or "sends" in reason


@given(schedules(most_ranks=4), st.data())
def test_a_step_on_another_rank_is_refused(steps, data):
    source = data.draw(st.integers(0, len(steps) - 1))
    step = steps[source].pop(data.draw(st.integers(0, len(steps[source]) - 1)))
    steps.append([step])
    try:
        check(steps)
    except ScheduleError as refused:
        assert any(word in str(refused) for word in ("keep it on one rank", "before", "deadlock"))
    else:
        raise AssertionError(f"{step} was accepted on a rank of its own")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("0F0,0B0\n1B0,1F0", "rank 1 does 1B0, its step 0, before 1F0"),
        ("0F0,0W0,0I0", "rank 0 does 0W0, its step 1, before 0I0"),
        ("(0F0;0B0)OVERLAP_F_B", "rank 0 does (0F0;0B0)OVERLAP_F_B, its step 0, before 0F0"),
        ("0F0,0I0", "0W0 is missing: its other half stands alone"),
        ("0F0,0W0", "0I0 is missing: its other half stands alone"),
        ("0F0", "0B0 is missing, or 0I0 and 0W0"),
        ("0F0,0B0,0W0", "0W0 stands beside 0B0: the whole backward pass has done it already"),
        ("0F0,0B0\n1B0", "1F0 is missing: every stage passes every micro-batch forward once"),
        ("0F0\n0B0", "0B0 stands on rank 1, but micro-batch 0 is on rank 0 at stage 0: keep it on one rank"),
        (
            "0F0,0F1,0B0,0B1\n1F1,1F0,1B0,1B1",
            "rank 0 sends the output of micro-batch 0 from rank 0 to stage 1, where rank 1 takes that of "
            "micro-batch 1: keep both ranks to one order",
        ),
        (
            "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1",
            "deadlock: rank 0 waits at 0B0 for the gradient of micro-batch 0 from rank 1 to stage 0, "
            "rank 1 waits at 1F1 for the output of micro-batch 1 from rank 0 to stage 1",
        ),
        ("", "the schedule has no steps: a pipeline has at least one stage and one micro-batch"),
    ],
)
def test_reasons(text, sentence):
    with pytest.raises(ScheduleError) as refused:
        check(read(text))
    assert str(refused.value) == sentence


def test_steps_that_are_none_are_refused():
    step = schedule.gpipe(1, 1)[0][0]
    with pytest.raises(UserError, match="0X0 is no step: its kind is one of F B I W"):
        check([[step._replace(kind="X")]])
    other = step._replace(microbatch=1)
    with pytest.raises(UserError, match=r"\(0F0;0F1\)OVERLAP_F_B is no F&B: it is one F and one whole B"):
        check([[Overlap(step, other)]])


def meets(steps, ahead, seed):
    """Whether all ranks finish if each send waits until its message was asked for, in any order of moves.

    A rank asks for a message when it comes to the step that needs it, and for `ahead` more on each channel.
    """
    drawn = random.Random(seed)
    planned = plan(steps)
    channels = by_channel(planned, "receives")
    asked = {message for messages in channels.values() for message in messages[:ahead]}
    sent = set()

    def rank(own):
        for _, receives, sends in own:
            asked.update(receives)
            yield lambda receives=receives: sent.issuperset(receives)
            for message in receives:
                messages = channels[channel(message)]
                place = messages.index(message)
                asked.update(messages[place + 1 : place + 1 + ahead])
            sent.update(sends)
            yield lambda sends=sends: asked.issuperset(sends)

    waiting = {run: next(run, None) for run in map(rank, planned)}
    while able := [run for run, condition in waiting.items() if condition and condition()]:
        chosen = drawn.choice(able)
        waiting[chosen] = next(chosen, None)
    return not any(waiting.values())


@given(schedules(most_ranks=4, most_more=3), st.data(), st.integers(0, 2))
@settings(max_examples=60)
def test_rendezvous_finishes_exactly_where_the_run_without_a_clock_does(steps, data, ahead):
    rank = data.draw(st.integers(0, len(steps) - 1))
    place = data.draw(st.integers(0, len(steps[rank]) - 1))
    moved = [*steps[:rank], steps[rank].copy(), *steps[rank + 1 :]]
    moved[rank].insert(data.draw(st.integers(0, place)), moved[rank].pop(place))  # of which some deadlock
    steps = moved if in_order(moved) else steps
    finished = {meets(steps, ahead, seed) for seed in range(3)}
    assert finished == {run(plan(steps), ahead) == ""}


def test_rendezvous_needs_a_receive_ahead_where_neighbours_send_to_each_other():
    """Both ranks of 1F1B send at the same moment: without asking ahead they wait for each other."""
    planned = plan(schedule.one_f_one_b(2, 4))
    assert run(planned, ahead=None) == ""
    assert run(planned, ahead=1) == ""
    assert run(planned, ahead=0) == (
        "rank 0 waits after 0F1 until rank 1 asks for the output of micro-batch 1 from rank 0 to stage 1, "
        "rank 1 waits after 1B0 until rank 0 asks for the gradient of micro-batch 0 from rank 1 to stage 0"
    )
