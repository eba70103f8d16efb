"""Schedules against what is published of them: their order, their notation, what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.errors import UserError
from train.pipeline import Overlap, Step, schedule
from train.pipeline.messages import Message, homes, plan, stage_count, stages_of
from train.pipeline.steps import parse, read, write

SIZES = st.tuples(st.integers(1, 8), st.integers(1, 20))


def words(steps):
    return " ".join(map(str, steps))


def test_1f1b_is_that_of_the_literature():
    first, second, third = schedule.one_f_one_b(3, 4)
    assert words(first) == "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3"
    assert words(second) == "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3"
    assert words(third) == "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3"


def test_zb1p_defers_as_many_weight_halves_as_1f1b_leaves_room_for():
    first, second, third = schedule.zb1p(3, 4)
    assert words(first) == "0F0 0F1 0F2 0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3"
    assert words(second) == "1F0 1F1 1I0 1F2 1I1 1W0 1F3 1I2 1W1 1I3 1W2 1W3"
    assert words(third) == "2F0 2I0 2F1 2I1 2F2 2I2 2W0 2F3 2I3 2W1 2W2 2W3"


def test_gpipe_goes_forward_with_all_first():
    assert write(schedule.gpipe(2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1\n"


def counted(ranks, microbatches):
    """The eight parts of DualPipe's order (DeepSeek-V3, section 3.2.1) for the first half of the ranks.

    Written out as in the published description, with counters and a queue: F0, then F0 F1, and so on.
    """
    p, c, found = ranks // 2, microbatches // 2, []
    for k in range(p):
        stage, forward, backward = (k, ranks - 1 - k), [0, c], [0, c]
        steps, queue = [], []

        def f(direction, stage=stage, forward=forward):
            forward[direction] += 1
            return f"{stage[direction]}F{forward[direction] - 1}"

        def b(direction, stage=stage, backward=backward):
            backward[direction] += 1
            return f"{stage[direction]}B{backward[direction] - 1}"

        def split(direction, steps=steps, queue=queue):
            text = b(direction)
            steps.append(text.replace("B", "I"))
            queue.append(text.replace("B", "W"))

        for _ in range(2 * (p - k - 1)):
            steps.append(f(0))
        for _ in range(k + 1):
            steps += [f(0), f(1)]
        for _ in range(p - k - 1):
            split(1)
            steps += [queue.pop(0), f(1)]
        for turn in range(c - ranks + k + 1):
            if turn == 0 and k == p - 1:
                steps += [f(0), b(1)]
            else:
                steps.append(f"({f(0)};{b(1)})OVERLAP_F_B")
            steps.append(f"({f(1)};{b(0)})OVERLAP_F_B")
        for _ in range(p - k - 1):
            steps += [b(1), f"({f(1)};{b(0)})OVERLAP_F_B"]
        deferred = False
        for turn in range(k + 1):
            for direction in (1, 0):
                if turn == (k + 1) // 2 and direction == (1 if k % 2 else 0):
                    deferred = True
                split(direction) if deferred else steps.append(b(direction))
        for _ in range(p - k - 1):
            steps.append(queue.pop(0))
            split(0)
        for _ in range(k + 1):
            steps.append(queue.pop(0))
        assert not queue
        found.append(" ".join(steps))
    return found


@pytest.mark.parametrize("ranks", [2, 4, 6, 8, 16])
@pytest.mark.parametrize("more", [0, 2, 10])
def test_dualpipe_has_the_eight_parts_in_order(ranks, more):
    made = schedule.dualpipe(ranks, 2 * ranks + more)
    assert [words(steps) for steps in made[: ranks // 2]] == counted(ranks, 2 * ranks + more)


@pytest.mark.parametrize("ranks, microbatches", [(2, 4), (4, 8), (6, 16), (10, 24)])
def test_dualpipe_looks_the_same_from_both_ends(ranks, microbatches):
    """Rank PP-1-r does what rank r does, with the halves of the batch exchanged; stages are places."""

    def mirror(part):
        return part._replace(microbatch=(part.microbatch + microbatches // 2) % microbatches)

    made = schedule.dualpipe(ranks, microbatches)
    for steps, others in zip(made, reversed(made)):
        assert [tuple(map(mirror, step.parts)) for step in steps] == [step.parts for step in others]


def test_dualpipe_micro_batches_enter_at_both_ends():
    ranks, microbatches = 4, 10
    where = homes(schedule.dualpipe(ranks, microbatches))
    for stage in range(ranks):
        assert [where[stage, m] for m in range(5)] == [stage] * 5
        assert [where[stage, m] for m in range(5, 10)] == [ranks - 1 - stage] * 5


@pytest.mark.parametrize("ranks, microbatches", [(1, 2), (2, 4), (2, 5), (3, 6), (3, 7), (5, 12)])
def test_dualpipe_v_is_the_near_half_of_a_dualpipe_twice_as_long(ranks, microbatches):
    folded = schedule.dualpipe_v(ranks, microbatches)
    whole = schedule.dualpipe(2 * ranks, 2 * microbatches)[:ranks]

    def fold(part):
        return part._replace(microbatch=part.microbatch % microbatches)

    assert [[step.parts for step in steps] for steps in folded] == [
        [tuple(map(fold, step.parts)) for step in steps] for steps in whole
    ]
    assert stages_of(folded) == [[r, 2 * ranks - 1 - r] for r in range(ranks)]


def test_stages_and_their_ranks():
    made = schedule.dualpipe(4, 8)
    assert stage_count(made) == 4
    assert stages_of(made) == [[0, 3], [1, 2], [1, 2], [0, 3]]
    assert stages_of(schedule.zb1p(3, 1)) == [[0], [1], [2]]


def test_messages_follow_from_the_steps():
    (first, *_), (second, *_, last) = plan(schedule.one_f_one_b(2, 1))
    sent = Message("F", 1, 0, source=0, destination=1)
    assert (first.receives, first.sends) == ((), (sent,))
    assert (second.receives, second.sends) == ((sent,), ())
    assert (last.receives, last.sends) == ((), (Message("B", 0, 0, source=1, destination=0),))


def test_nothing_is_sent_where_the_v_turns():
    planned = plan(schedule.dualpipe_v(2, 4))
    turning = [m for rank in planned for step in rank for m in step.sends if {m.source, m.destination} == {1}]
    assert turning == []
    assert (
        sum(len(step.sends) for rank in planned for step in rank) == 4 * 2 * 2
    )  # 4 micro-batches, 2 x 2 ways


@pytest.mark.parametrize("text", ["2F0", "0B11", "12I3", "3W4", "(2F4;5B1)OVERLAP_F_B"])
def test_notation_is_read_and_written(text):
    assert str(parse(text)) == text


def test_notation_means_what_it_says():
    assert parse("2F0") == Step(2, "F", 0)
    assert parse("(2F4;5B1)OVERLAP_F_B") == Overlap(Step(2, "F", 4), Step(5, "B", 1))


@pytest.mark.parametrize("text", ["", "F0", "2F", "2X0", "-1F0", "(2F4;5I1)OVERLAP_F_B", "(2F4,5B1)", "2F0 "])
def test_what_is_no_step_is_refused(text):
    with pytest.raises(UserError, match="is no step: write 2F0"):
        parse(text)


@given(SIZES, st.sampled_from(["gpipe", "one_f_one_b", "zb1p", "dualpipe", "dualpipe_v"]))
def test_a_schedule_survives_its_text(sizes, name):
    try:
        made = schedule.SCHEDULES[name](*sizes)
    except UserError:
        return
    assert read(write(made)) == made


@pytest.mark.parametrize(
    "name, ranks, microbatches, problem, remedy",
    [
        ("one_f_one_b", 0, 4, "has 0 ranks", "at least 1"),
        ("gpipe", 2, 0, "has 0 micro-batches", "at least 1"),
        ("zb1p", -1, 2, "has -1 ranks", "at least 1"),
        ("dualpipe", 3, 8, "has 3 ranks, but two directions need pairs", "4, or dualpipe_v"),
        ("dualpipe", 4, 9, "has 9 micro-batches, but half of them enter at each end", "10, or dualpipe_v"),
        ("dualpipe", 4, 6, "has 6 micro-batches for 4 ranks, but its order needs two for each", "at least 8"),
        (
            "dualpipe_v",
            3,
            5,
            "has 5 micro-batches for 3 ranks, but its order needs two for each",
            "at least 6",
        ),
    ],
)
def test_impossible_sizes_are_refused_with_a_remedy(name, ranks, microbatches, problem, remedy):
    with pytest.raises(UserError) as refused:
        schedule.SCHEDULES[name](ranks, microbatches)
    assert str(refused.value).startswith(f"{name} {problem}: take {remedy}")
    assert isinstance(refused.value, ValueError)
