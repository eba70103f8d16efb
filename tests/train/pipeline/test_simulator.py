"""The simulator against the published table, against a clock that ticks, and against itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.pipeline.test_checker import schedules
from train.errors import UserError
from train.pipeline import Overlap, Simulator, Times, schedule, simulate
from train.pipeline.messages import stages_of
from train.pipeline.promise import promise
from train.pipeline.steps import read

WHOLE = st.integers(1, 5)


@pytest.mark.parametrize("name", schedule.SCHEDULES)
@pytest.mark.parametrize("ranks", range(2, 17))
def test_bubble_is_that_of_the_table_where_all_halves_are_equal(name, ranks):
    if name == "dualpipe" and ranks % 2:
        return
    for microbatches in (2 * ranks, 2 * ranks + 2, 5 * ranks + ranks % 2):
        for unit in (1, 3):
            made = schedule.SCHEDULES[name](ranks, microbatches)
            timeline = simulate(made, Times(F=unit, I=unit, W=unit))
            promised = promise(name, ranks, microbatches, unit, 2 * unit, unit, 3 * unit)
            assert timeline.bubble == promised.bubble
            assert max(timeline.peak_memory) == promised.alive
            assert timeline.length == timeline.bubble + 3 * unit * microbatches * (1 + (name == "dualpipe_v"))


def test_the_table_is_the_published_one():
    """DeepSeek-V3, table 2, for PP = 8, F = 2, B = 5, W = 1, F&B = 6."""
    times = (2, 5, 1, 6)
    assert promise("one_f_one_b", 8, 20, *times) == (7 * (2 + 5), 1, 8)
    assert promise("zb1p", 8, 20, *times) == (7 * (2 + 5 - 2 * 1), 1, 8)
    assert promise("dualpipe", 8, 20, *times) == ((8 // 2 - 1) * (6 + 5 - 3 * 1), 2, 9)
    assert promise("dualpipe_v", 4, 20, *times) == ((8 // 2 - 1) * (6 + 5 - 3 * 1), 1, 9), "on 4 ranks"
    assert promise("gpipe", 8, 20, *times) == (7 * (2 + 5), 1, 20)
    for name, stages in (("one_f_one_b", 8), ("zb1p", 8), ("dualpipe", 16), ("dualpipe_v", 16)):
        held = sum(map(len, stages_of(schedule.SCHEDULES[name](8, 20))))
        assert held == stages == promise(name, 8, 20).parameters * (8 if name != "dualpipe_v" else 16)


def difference(name, f, i, w):
    """The simulated bubble less the promised one, on 8 ranks."""
    bubble = simulate(schedule.SCHEDULES[name](8, 20), Times(F=f, I=i, W=w)).bubble
    return bubble - promise(name, 8, 20, f, i + w, w, f + i + w).bubble


@given(st.sampled_from([2, 4, 6]), st.integers(0, 4), WHOLE, WHOLE, WHOLE)
@settings(max_examples=40)
def test_where_the_formulas_hold_for_other_times(half, more, f, i, w):
    """What `promise` says of them: where they are exact, and to which side they are off elsewhere."""
    ranks, microbatches = 2 * half, 4 * half + 2 * more

    def off(name):
        timeline = simulate(schedule.SCHEDULES[name](ranks, microbatches), Times(F=f, I=i, W=w))
        return timeline.bubble - promise(name, ranks, microbatches, f, i + w, w, f + i + w).bubble

    assert off("gpipe") == off("one_f_one_b") == 0
    assert (off("zb1p") > 0) == (w > min(f, i)) and off("zb1p") >= 0
    for name in ("dualpipe", "dualpipe_v"):
        side = (off(name) > 0) - (off(name) < 0)
        assert side == (0 if f == i >= w else -1 if f < i >= w else 1)


def test_dualpipe_is_a_little_better_than_its_formula_where_halves_differ():
    """F 1, B 3, W 1, F&B 4 on 8 ranks: 11 for 12, as is known of it."""
    timeline = simulate(schedule.dualpipe(8, 20), Times(F=1, I=2, W=1, FB=4))
    assert (timeline.bubble, promise("dualpipe", 8, 20, 1, 3, 1, 4).bubble) == (11, 12)


def ticking(steps, durations, delay):
    """Starts of all steps by a clock that ticks once a unit: whoever is free and has everything begins."""
    last = max(part.stage for rank in steps for step in rank for part in step.parts)
    there = {}  # (what, stage, micro-batch) -> (rank, time from which it is there)
    at, free, starts = [0] * len(steps), [0] * len(steps), [[] for _ in steps]

    def arrived(what, stage, microbatch, rank, now):
        source, time = there.get((what, stage, microbatch), (rank, None))
        return time is not None and time + (delay[source][rank] if source != rank else 0) <= now

    def ready(part, rank, now):
        _, s, m = part.kind, part.stage, part.microbatch
        if part.kind == "F":
            return s == 0 or arrived("output", s - 1, m, rank, now)
        if part.kind == "W":
            return True
        return arrived("output", s, m, rank, now) and (s == last or arrived("gradient", s + 1, m, rank, now))

    now = 0
    while any(place < len(rank) for place, rank in zip(at, steps)):
        for rank, own in enumerate(steps):
            if at[rank] == len(own) or free[rank] > now:
                continue
            step = own[at[rank]]
            if not all(ready(part, rank, now) for part in step.parts):
                continue
            starts[rank].append(now)
            free[rank] = now + durations[rank][at[rank]]
            for part in step.parts:
                if part.kind != "W":
                    what = "output" if part.kind == "F" else "gradient"
                    there[what, part.stage, part.microbatch] = (rank, free[rank])
            at[rank] += 1
        now += 1
    return starts


@given(schedules(most_ranks=4, most_more=3), st.integers(0, 2**32 - 1))
def test_any_times_give_what_a_ticking_clock_gives(steps, seed):
    drawn = np.random.default_rng(seed)
    durations = [drawn.integers(1, 6, len(rank)).tolist() for rank in steps]
    delay = drawn.integers(0, 4, (len(steps), len(steps))).tolist()
    timeline = simulate(steps, durations, delay)
    assert timeline.starts == ticking(steps, durations, delay)
    assert timeline.busy == [sum(rank) for rank in durations]


@given(schedules(most_ranks=4, most_more=3), st.integers(0, 2**32 - 1))
def test_many_lengths_at_once_are_the_same_lengths(steps, seed):
    simulator = Simulator(steps)
    count = sum(map(len, steps))
    took = np.random.default_rng(seed).random((count, 3))
    cuts = np.cumsum([0, *map(len, steps)])
    for number, length in enumerate(simulator.lengths(took, communication=2)):
        durations = [took[a:b, number].tolist() for a, b in zip(cuts, cuts[1:])]
        assert simulator.run(durations, communication=2).length == length


@given(schedules(), st.tuples(WHOLE, WHOLE, WHOLE), st.integers(0, 3))
def test_scaling_all_times_scales_the_timeline(steps, times, delay):
    f, i, w = times
    one = simulate(steps, Times(F=f, I=i, W=w), delay)
    three = simulate(steps, Times(F=3 * f, I=3 * i, W=3 * w), 3 * delay)
    assert three.length == 3 * one.length and three.idle == [3 * idle for idle in one.idle]


@given(schedules(), st.data())
def test_a_straggler_never_shortens_and_costs_at_most_its_own_time(steps, data):
    slow = [data.draw(st.sampled_from([1, 2])) for _ in steps]
    even, uneven = simulate(steps), simulate(steps, Times(slowdown=slow))
    assert even.length <= uneven.length <= 2 * even.length
    assert uneven.busy == [busy * factor for busy, factor in zip(even.busy, slow)]


def test_every_time_has_its_meaning():
    steps = read("0F0,(0F1;0B0)OVERLAP_F_B,0I1,0W1")
    times = Times(F=2, I=3, W=5, all_to_all=7)
    assert times.of(steps) == [[9, 14, 10, 5]], "waited for alone, beside the products (10 < 14) in F&B"
    assert Times(F=2, I=3, W=5, all_to_all=1).of(steps) == [[3, 10, 4, 5]]
    assert Times(F=2, I=3, W=5, FB=8, slowdown=2).of(steps) == [[4, 16, 6, 10]]
    assert Times(F=2, B=6).of(read("0F0,0B0")) == [[2, 6]]
    assert Times(F=[1, 2], I=[3, 4], W=[5, 6]).of(read("0F0,0B0\n1F0,1B0")) == [[1, 8], [2, 10]]


def test_overlap_waits_for_both_and_sends_both():
    steps = read("0F0,0F1,0B0,0B1\n1F0,(1F1;1B0)OVERLAP_F_B,1B1")
    timeline = simulate(steps, Times(F=1, B=2, FB=2.5), communication=0.25)
    assert timeline.starts == [[0, 1, 5, 7], [1.25, 2.25, 4.75]]
    assert timeline.spans[4].step == steps[1][0] and timeline.spans[5].end == 4.75
    assert isinstance(timeline.spans[5].step, Overlap)


@pytest.mark.parametrize(
    "times, communication, sentence",
    [
        (Times(F=[1, 2, 3]), 0, "F has 3 numbers for 2 stages: give one for each, or a single one"),
        (Times(slowdown=[1, 1, 1]), 0, "slowdown has 3 numbers for 2 ranks"),
        (Times(W=-1), 0, "W is -1.0: times are finite and at least 0"),
        (Times(all_to_all=float("nan")), 0, "all_to_all is nan: times are finite and at least 0"),
        (
            [[1.0]],
            0,
            r"times are given for \[1\] steps of the ranks that have \[4, 4\]: give one for each step",
        ),
        (Times(), [[0.0]], r"communication has rows of \[1\] for 2 ranks"),
        (Times(), -1, "communication has a time that is negative or not finite"),
    ],
)
def test_times_that_cannot_be_are_refused(times, communication, sentence):
    with pytest.raises(UserError, match=sentence):
        simulate(schedule.one_f_one_b(2, 2), times, communication)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("0F0,0F1,0B0\n1F0,1F1,1B0,1B1", "0B1 is missing"),
        ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1", "deadlock"),
        ("0F0,0F0,0B0", "stands 2 times"),
        ("0B0,0F0", "before 0F0"),
        ("0F9,0B0\n1F0,1B0", "0F0 is missing"),
        ("", "no steps"),
    ],
)
def test_what_cannot_run_is_refused_with_the_checkers_reason(text, reason):
    with pytest.raises(UserError, match=reason):
        simulate(read(text))
