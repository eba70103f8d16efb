"""The search finds what trying everything finds, and never does worse than equal numbers of layers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import UserError
from train.pipeline import Times, schedule, simulate
from train.pipeline.search import best_split, evenest, neighbours, stage_sums

WHOLE = st.integers(1, 6)


def layer_times(draw, count):
    def numbers():
        return draw(st.lists(WHOLE, min_size=count, max_size=count))

    return Times(F=numbers(), I=numbers(), W=numbers(), all_to_all=numbers())


@st.composite
def cases(draw):
    name = draw(st.sampled_from(["one_f_one_b", "zb1p", "dualpipe", "dualpipe_v"]))
    made = schedule.SCHEDULES[name](2, 4 + 2 * draw(st.integers(0, 2)))
    count = draw(st.integers(4, 7))
    return made, layer_times(draw, count), count


def tried_one_by_one(made, layers, count):
    """The least length over all splits, each simulated by itself."""
    stages = 1 + max(part.stage for rank in made for step in rank for part in step.parts)
    every = [counts for counts in product(range(1, count + 1), repeat=stages) if sum(counts) == count]
    return min(simulate(made, stage_sums(layers, counts), 1).length for counts in every), len(every)


@given(cases())
@settings(max_examples=30)
def test_few_splits_are_all_tried(case):
    made, layers, count = case
    found = best_split(made, layers, count, communication=1)
    assert (found.length, found.tried) == tried_one_by_one(made, layers, count)
    assert found.exact and sum(found.counts) == count
    assert simulate(made, stage_sums(layers, found.counts), 1).length == found.length


@given(cases())
@settings(max_examples=30)
def test_a_walk_ends_where_no_single_layer_helps(case):
    made, layers, count = case
    walked = best_split(made, layers, count, communication=1, try_all=0)
    best = best_split(made, layers, count, communication=1)
    assert not walked.exact and walked.length >= best.length
    assert simulate(made, stage_sums(layers, walked.counts), 1).length == walked.length
    for cuts in neighbours(np.cumsum([0, *walked.counts])):
        assert simulate(made, stage_sums(layers, np.diff(cuts)), 1).length >= walked.length


@given(st.lists(WHOLE, min_size=4, max_size=9), st.integers(2, 4))
def test_evenest_has_the_shortest_longest_stage(times, stages):
    def longest(counts):
        return max(np.diff(np.cumsum([0, *times])[np.cumsum([0, *counts])]))

    cuts = evenest(np.cumsum([0, *times]), stages)
    every = [c for c in product(range(1, len(times) + 1), repeat=stages) if sum(c) == len(times)]
    assert longest(np.diff(cuts)) == min(map(longest, every))


def test_a_long_last_layer_gets_a_stage_with_few_others():
    layers = Times(F=[1] * 7 + [3], I=[1] * 7 + [3], W=[1] * 7 + [3])
    found = best_split(schedule.one_f_one_b(2, 8), layers, 8)
    assert found.counts == (5, 3), "five of 3 a pass, beside two of 3 and one of 9"
    assert found.length < simulate(schedule.one_f_one_b(2, 8), stage_sums(layers, (4, 4))).length


def test_a_stage_is_the_sum_of_its_layers():
    layers = Times(F=[1, 2, 4], I=1, W=[1, 0, 1], all_to_all=[0, 1, 2])
    assert stage_sums(layers, (1, 2)) == Times(F=[1, 6], I=[1, 2], W=[1, 1], B=[2, 3], all_to_all=[0, 3])


@pytest.mark.parametrize(
    "layers, count, sentence",
    [
        (Times(), 3, "3 layers are too few for 4 stages: every stage needs one"),
        (Times(F=[1, 2]), 5, "F has 2 numbers for 5 layers"),
        (Times(FB=3), 5, "leave FB and slowdown out"),
    ],
)
def test_impossible_searches_are_refused(layers, count, sentence):
    with pytest.raises(UserError, match=sentence):
        best_split(schedule.one_f_one_b(4, 8), layers, count)
