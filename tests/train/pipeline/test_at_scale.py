"""The prediction of V3's training: its parts against the config and the plan, its directions, its tables."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from layers import DeepSeekConfig
from layers.plan import block_parts
from layers.roofline import products
from train.errors import UserError
from train.pipeline import scale_report
from train.pipeline.at_scale import (
    PROFILED,
    PUBLISHED_HOURS,
    PUBLISHED_STEP,
    block,
    exchange,
    extra_steps,
    extremes,
    from_published_passes,
    last,
    layer_times,
    matrices,
    optimizer_seconds,
    predict,
    profiled,
    sensitivity,
    spent,
)
from train.pipeline.cluster import Assumptions, doubtful

V3 = DeepSeekConfig()
GIVEN = Assumptions()
PAGE = Path(__file__).parents[3] / "docs" / "at_scale.md"


@pytest.fixture(scope="module")
def found():
    return predict(V3, GIVEN)


@pytest.mark.parametrize("moe", [False, True])
def test_matrices_are_those_of_the_config(moe):
    """In FP8 run attention, feed-forward and experts, as the checkpoint has them."""
    quantised = sum(part.active for part in block_parts(V3, 1, 0 if moe else 1) if part.quantised)
    assert sum(numbers for numbers, _ in matrices(V3, replace(GIVEN, imbalance=1.0), moe)) == quantised


def test_the_times_of_one_rate_are_flops_by_that_rate():
    """Every product at one rate and nothing else to do: 2 operations for each number, token and part."""
    rate, free = 1e15, 1e30
    matrix_rates = ("latent_in", "query_up", "key_value_up", "attention_out")
    expert_rates = ("shared_in", "shared_out", "experts_in", "experts_out")
    same = dict.fromkeys((*matrix_rates, *expert_rates, "bf16"), rate)
    even = dict.fromkeys(("share_of_sms", "imbalance", "input_rate", "weight_rate"), 1.0)
    flat = replace(GIVEN, **same, **even, attention=free, attention_backward=free, memory=free)
    layers = layer_times(V3, flat)
    flops = 2 * products(V3, mtp=True) * flat.length
    assert sum(layers.F) == sum(layers.W) == pytest.approx(flops / rate)
    again = 2 * flat.length * 62 * (128 * 192 * 1536 + 128 * 256 * 512) / rate  # MLA's up-projections
    assert sum(layers.I) == pytest.approx(flops / rate + again)


def test_an_all_to_all_is_four_nodes_times_the_row_in_both_formats():
    sent = 4096 * 4 * 7168
    assert exchange(V3, GIVEN) == pytest.approx(sent * (1 + 1 / 32) / 51e9 + sent * 2 / 50e9)
    assert block(V3, GIVEN, moe=False).all_to_all == 0
    assert last(V3, GIVEN).all_to_all == exchange(V3, GIVEN), "of the MTP module"


def test_a_step_has_the_published_number_of_tokens_and_micro_batches(found):
    assert GIVEN.microbatches == 120
    assert sum(found.split.counts) == 62 and len(found.split.counts) == 16
    assert len(found.timeline.schedule) == 16
    assert max(found.timeline.peak_memory) == 17


def test_a_step_is_the_sum_of_its_parts(found):
    parts = dict(found.seconds)
    step = parts.pop("step")
    assert sum(parts.values()) == pytest.approx(step)
    assert set(found.seconds) == set(PUBLISHED_STEP)


def test_published_figures_agree_with_one_another():
    """The measured step, repeated for all tokens, takes the published hours: no lost time is in them."""
    parts = dict(PUBLISHED_STEP)
    step = parts.pop("step")
    assert sum(parts.values()) == pytest.approx(step, rel=2e-3)
    steps = GIVEN.tokens / (GIVEN.batch * GIVEN.length)
    assert steps * step * GIVEN.gpus / 3600 == pytest.approx(PUBLISHED_HOURS, rel=2e-3)


def test_the_prediction_is_within_its_own_doubt_of_what_was_published(found):
    assert found.hours == pytest.approx(PUBLISHED_HOURS, rel=0.1)
    for kind in ("F", "B", "W", "F&B"):
        assert found.seconds[kind] == pytest.approx(PUBLISHED_STEP[kind], rel=0.12), kind


def test_four_layers_take_what_the_published_profile_says():
    """Products forward and of first halves by DeepGEMM's rates; the rest of the profile was read off it."""
    assert profiled(V3, GIVEN) == pytest.approx(PROFILED, rel=0.05)
    visible = profiled(V3, replace(GIVEN, exposed=0.3))["F&B"] - profiled(V3, GIVEN)["F&B"]
    assert visible == pytest.approx(0.3 * 8e3 * exchange(V3, GIVEN))


def test_the_schedule_with_measured_passes_takes_what_was_measured_but_for_some_waiting():
    timeline = from_published_passes(GIVEN)
    seconds = spent(timeline)
    for kind in ("F", "B", "W", "F&B"):
        assert seconds[kind] == pytest.approx(PUBLISHED_STEP[kind])
    step = timeline.length + PUBLISHED_STEP["optimizer"]
    assert 0.9 * PUBLISHED_STEP["step"] < step < PUBLISHED_STEP["step"]
    one_slow = from_published_passes(GIVEN, [1.08 if rank == 7 else 1.0 for rank in range(16)])
    assert spent(one_slow)["bubble"] == pytest.approx(PUBLISHED_STEP["bubble"], rel=0.1)


def test_steps_of_a_growing_batch_are_counted_one_by_one():
    small = replace(GIVEN, ramp=1e6, length=10, first_batch=100, batch=300)
    seen = steps = 0.0
    while seen < small.ramp:
        seen += small.length * (100 + 200 * seen / small.ramp)
        steps += 1
    assert extra_steps(small) == pytest.approx(steps - small.ramp / small.length / small.batch, rel=0.01)
    assert extra_steps(replace(GIVEN, first_batch=15360)) == 0


def test_faster_machines_need_fewer_hours_and_more_work_more(found):
    hours = sensitivity(V3, GIVEN, found.split)
    assert set(hours) == {each.name for each in doubtful()}
    more_is_slower = {"imbalance", "forward_moves", "input_moves", "weight_moves", "exposed"}
    for name, (low, high) in hours.items():
        assert (low < high) == (name in more_is_slower), name
    least, most = extremes(V3, GIVEN, found.split, hours)
    assert least < min(map(min, hours.values())) and max(map(max, hours.values())) < most
    assert least < PUBLISHED_HOURS < most
    drawn = ElementTree.fromstring(scale_report.tornado(hours, found.hours))
    text = " ".join(node.text or "" for node in drawn.iter("{http://www.w3.org/2000/svg}text"))
    assert all(name.replace("_", " ") in text for name in hours)


def test_twice_the_network_halves_the_optimizer():
    assert optimizer_seconds(V3, replace(GIVEN, network=100e9)) == optimizer_seconds(V3, GIVEN) / 2


def test_report_lists_every_assumption_and_the_page_has_its_numbers(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    scale_report.report(scale_report.AtScale(GIVEN))
    printed = capsys.readouterr().out
    for name in vars(GIVEN):
        assert f" {name} " in printed
    page = PAGE.read_text()
    for line in printed.splitlines():
        if "million" in line or line.startswith(("layers of", "four layers")):
            assert line in page
    for name in ("F", "B", "W", "F&B", "bubble", "optimizer", "step"):
        assert f"{found.seconds[name]:.2f}" in page


def test_impossible_assumptions_are_refused():
    with pytest.raises(UserError, match="memory is 0: it has to be more than 0"):
        replace(GIVEN, memory=0)
    with pytest.raises(UserError, match="gpus is 8 for 16 pipeline_ranks: every rank needs at least one"):
        replace(GIVEN, gpus=8)
    with pytest.raises(UserError, match="dualpipe has 15 ranks"):
        predict(V3, replace(GIVEN, pipeline_ranks=15))
