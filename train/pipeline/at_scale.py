"""DeepSeek-V3's own training, predicted: FLOPs of its config, rates of published kernels, time by simulation.

The plan is V3's: a DualPipe of 16 stages, experts over 64 ranks on 8 nodes, ZeRO-1, FP8, 2048 H800. The times
of one layer's passes follow from its matrices (2 operations for each number and token, forward and in either
half of the backward pass), from what it moves through memory, and from what it sends. The layers are split
over the stages by search, the step is simulated, and steps are counted.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from layers import DeepSeekConfig
from layers.plan import attention_numbers, count
from layers.roofline import attention_flops, kept_in_block
from train.pipeline.cluster import Assumptions, doubtful
from train.pipeline.schedule import dualpipe
from train.pipeline.search import Split, best_split, stage_sums
from train.pipeline.simulator import Simulator
from train.pipeline.steps import B, F, I, W
from train.pipeline.timeline import Timeline
from train.pipeline.times import Times

PUBLISHED_HOURS = 2.664e6  # V3, table 1: pre-training
PUBLISHED_STEP = {  # seconds, Insights, table 4, MPFT: 1F, 1B, 1W, 1F1B, bubble, opt, time/step
    "F": 1.13,
    "B": 1.99,
    "W": 0.48,
    "F&B": 13.95,
    "bubble": 2.06,
    "optimizer": 0.29,
    "step": 19.926,
}
PROFILED = {"F": 36.3, "I": 59.7, "W": 35.1, "F&B": 129.0}
"""Milliseconds of four layers with experts in the published profile (see cluster.py): what their kernels
compute, and how long the interleaved passes take from their first kernel to their last."""


class Pass(NamedTuple):
    """Seconds of one layer's passes over one micro-batch on one GPU."""

    F: float
    I: float  # noqa: E741  the letters of the literature
    W: float
    all_to_all: float


class Prediction(NamedTuple):
    """What a training of that kind takes."""

    split: Split
    timeline: Timeline  # of one step, without the optimizer
    seconds: dict[str, float]  # of one step, by what it is spent on: mean over the ranks
    hours: float  # GPU hours for all tokens


def matrices(config: DeepSeekConfig, given: Assumptions, moe: bool) -> list[tuple[float, float]]:
    """(numbers that a token is multiplied with, FLOP/s) for each matrix of a block that runs in FP8."""
    d, h, r_q, r = config.hidden_size, config.num_attention_heads, config.q_lora_rank, config.kv_lora_rank
    assert r_q is not None, "the published rates are for queries that come from a latent"
    attention = [
        ((r_q + r + config.qk_rope_head_dim) * d, given.latent_in),
        (h * config.qk_head_dim * r_q, given.query_up),
        (h * (config.qk_nope_head_dim + config.v_head_dim) * r, given.key_value_up),
        (d * h * config.v_head_dim, given.attention_out),
    ]
    assert sum(numbers for numbers, _ in attention) == attention_numbers(config)[0]
    if not moe:
        width = config.intermediate_size
        return [*attention, (2 * width * d, given.attention_out), (width * d, given.attention_out)]
    width, shared = config.moe_intermediate_size, config.n_shared_experts * config.moe_intermediate_size
    routed = config.num_experts_per_tok * given.imbalance
    return [
        *attention,
        (2 * shared * d, given.shared_in),
        (shared * d, given.shared_out),
        (routed * 2 * width * d, given.experts_in),
        (routed * width * d, given.experts_out),
    ]


def block(config: DeepSeekConfig, given: Assumptions, moe: bool) -> Pass:
    """One transformer block. MLA's up-projections are computed again in the backward pass (V3, 3.2.3)."""
    tokens = given.microbatch * given.length
    products = matrices(config, given, moe)
    once = sum(2 * tokens * numbers / (rate * given.share_of_sms) for numbers, rate in products)
    again = sum(2 * tokens * numbers / (rate * given.share_of_sms) for numbers, rate in products[1:3])
    router = moe * 2 * tokens * config.n_routed_experts * config.hidden_size / given.bf16
    scores = tokens * attention_flops(config, (given.length + 1) / 2) / config.num_hidden_layers
    moved = 2 * tokens * kept_in_block(config, moe=moe) / given.memory  # in bfloat16
    back, weights = once / given.input_rate, once / given.weight_rate
    return Pass(
        F=once + router + scores / given.attention + given.forward_moves * moved,
        I=back + again + router + 2.5 * scores / given.attention_backward + given.input_moves * moved,
        W=weights + router + given.weight_moves * moved,
        all_to_all=exchange(config, given) if moe else 0.0,
    )


def exchange(config: DeepSeekConfig, given: Assumptions) -> float:
    """Dispatch in FP8 with a scale for 128 numbers and combine in bfloat16, once for each node reached.

    Backward the two change places, and their gradients are as large (V3, section 3.3.3).
    """
    numbers = given.microbatch * given.length * given.nodes_per_token * config.hidden_size
    return numbers * (1 + 4 / 128) / given.dispatch + numbers * 2 / given.combine


def last(config: DeepSeekConfig, given: Assumptions) -> Pass:
    """Head and loss, and the MTP module with its joining matrix and its own pass through the same head."""
    tokens, d = given.microbatch * given.length, config.hidden_size
    heads = 1 + config.num_nextn_predict_layers
    head = heads * 2 * tokens * config.vocab_size * d / given.bf16
    logits = heads * 2 * 4 * tokens * config.vocab_size / given.memory  # float32, written and read
    join = 2 * tokens * 2 * d * d / (given.attention_out * given.share_of_sms)
    module, modules = block(config, given, moe=True), config.num_nextn_predict_layers
    return Pass(
        F=head + logits + modules * (module.F + join),
        I=head + logits + modules * (module.I + join / given.input_rate),
        W=head + modules * (module.W + join / given.weight_rate),
        all_to_all=modules * module.all_to_all,
    )


def layer_times(config: DeepSeekConfig, given: Assumptions) -> Times:
    """All blocks, then head and MTP as one more layer. The embedding, a look-up, is counted as nothing."""
    dense, moe = block(config, given, moe=False), block(config, given, moe=True)
    blocks = [moe if config.is_moe(layer) else dense for layer in range(config.num_hidden_layers)]
    f, i, w, a = (list(values) for values in zip(*blocks, last(config, given)))
    return Times(F=f, I=i, W=w, all_to_all=a)


def optimizer_seconds(config: DeepSeekConfig, given: Assumptions) -> float:
    """ZeRO-1: gradients of a GPU's parameters summed in float32, new weights gathered in bfloat16.

    A GPU has two stages: their experts divided by the expert ranks, all else whole.
    """
    every = count(config, mtp=True)
    expert = 3 * config.hidden_size * config.moe_intermediate_size * config.n_routed_experts
    moe = config.num_hidden_layers - config.first_k_dense_replace + config.num_nextn_predict_layers
    experts = expert * moe
    held = 2 / given.pipeline_ranks * (experts / given.expert_ranks + every - experts)
    return held * (4 + 2) / given.network


def predict(config: DeepSeekConfig, given: Assumptions, split: Split | None = None) -> Prediction:
    """The step of V3's plan, simulated, and what all tokens take. `split`: of layers, else searched."""
    simulator = simulator_of(given.pipeline_ranks, given.microbatches)
    layers = layer_times(config, given)
    units = config.num_hidden_layers + 1
    sent = message_seconds(config, given)
    if split is None:
        split = best_split(simulator.schedule, layers, units, sent)
    stages = stage_sums(layers, split.counts)
    times = hidden(stages, given)
    timeline = simulator.run(times, sent)
    optimizer = optimizer_seconds(config, given)
    step = timeline.length + optimizer
    more = overhead(simulator, times, sent, given) + optimizer
    steps = given.tokens / (given.batch * given.length)
    hours = (steps * step + extra_steps(given) * more) * given.gpus / 3600
    return Prediction(split, timeline, spent(timeline) | {"optimizer": optimizer, "step": step}, hours)


@cache
def simulator_of(ranks: int, microbatches: int) -> Simulator:
    """DualPipe made ready once, for predictions that differ in their times alone."""
    return Simulator(dualpipe(ranks, microbatches))


def hidden(stages: Times, given: Assumptions) -> Times:
    """F&B of a rank's two stages, with the share of the all-to-alls that products do not hide."""
    if not given.exposed:
        return stages
    by_stage = stages.by_stage(given.pipeline_ranks)
    pairs = []
    for f, b, one, other in zip(by_stage.F, by_stage.B[::-1], by_stage.all_to_all, by_stage.all_to_all[::-1]):
        pairs.append(max(f + b, one + other) + given.exposed * (one + other))
    return replace(stages, FB=pairs)


def overhead(simulator: Simulator, times: Times, sent: float, given: Assumptions) -> float:
    """Seconds of a step that do not grow with its micro-batches: the filling and draining of the pipeline."""
    more = simulator_of(given.pipeline_ranks, given.microbatches + 4)
    longer = more.run(times, sent).length
    length = simulator.run(times, sent).length
    return length - given.microbatches * (longer - length) / 4


def extra_steps(given: Assumptions) -> float:
    """Steps more than with the full batch from the start: it grows evenly with the tokens seen."""
    low, high = given.first_batch, given.batch
    if low >= high:
        return 0.0
    return given.ramp / given.length * (math.log(high / low) / (high - low) - 1 / high)


def spent(timeline: Timeline) -> dict[str, float]:
    """Seconds of the average rank by what it does; B with its first halves, as the published table has it."""
    names = {(F,): "F", (B,): "B", (I,): "B", (W,): "W", (F, B): "F&B"}
    seconds = dict.fromkeys(["F", "B", "W", "F&B"], 0.0)
    for _, step, start, end in timeline.spans:
        seconds[names[tuple(part.kind for part in step.parts)]] += (end - start) / len(timeline.schedule)
    return seconds | {"bubble": sum(timeline.idle) / len(timeline.idle)}


def profiled(config: DeepSeekConfig, given: Assumptions) -> dict[str, float]:
    """What is predicted for `PROFILED`, milliseconds: four layers, all experts equally busy."""
    layer = block(config, replace(given, imbalance=1.0), moe=True)
    computed = layer.F + layer.I + layer.W
    both = max(computed, 2 * layer.all_to_all) + given.exposed * 2 * layer.all_to_all
    return {name: 4e3 * seconds for name, seconds in zip(PROFILED, (layer.F, layer.I, layer.W, both))}


def from_published_passes(given: Assumptions, slowdown: float | Sequence[float] = 1.0) -> Timeline:
    """The step that the schedule gives if its passes take what was measured: published sums by their numbers.

    All stages alike, ranks as slow as is given. What is left of the published step beside that of even ranks
    is not in the schedule: ranks that wait for slower ones, passes that do not always take the same time.
    """
    simulator = simulator_of(given.pipeline_ranks, given.microbatches)
    schedule = simulator.schedule
    kinds = Counter(tuple(part.kind for part in step.parts) for steps in schedule for step in steps)
    number = {kind: times / len(schedule) for kind, times in kinds.items()}  # on the average rank
    w = PUBLISHED_STEP["W"] / number[W,]
    i = (PUBLISHED_STEP["B"] - number[B,] * w) / (number[B,] + number[I,])
    f, fb = PUBLISHED_STEP["F"] / number[F,], PUBLISHED_STEP["F&B"] / number[F, B]
    times = Times(F=f, I=i, W=w, FB=fb, slowdown=slowdown)
    return simulator.run(times, message_seconds(DeepSeekConfig(), given))


def message_seconds(config: DeepSeekConfig, given: Assumptions) -> float:
    """An output or a gradient on its way to the next stage, in bfloat16."""
    return 2 * given.microbatch * given.length * config.hidden_size / given.network


def sensitivity(config: DeepSeekConfig, given: Assumptions, split: Split) -> dict[str, tuple[float, float]]:
    """GPU hours with each doubtful number at its low and its high end, the others as they are."""

    def hours(name: str, value: float) -> float:
        changed: dict[str, Any] = {name: value}
        return predict(config, replace(given, **changed), split).hours

    return {
        each.name: (hours(each.name, each.metadata["low"]), hours(each.name, each.metadata["high"]))
        for each in doubtful()
    }


def extremes(
    config: DeepSeekConfig, given: Assumptions, split: Split, hours: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """GPU hours with all doubtful numbers at their better ends, and at their worse ends."""
    better: dict[str, Any] = {}
    worse: dict[str, Any] = {}
    for each in doubtful():
        ends = each.metadata["low"], each.metadata["high"]
        low, high = hours[each.name]
        better[each.name], worse[each.name] = ends if low <= high else ends[::-1]
    least, most = (predict(config, replace(given, **ends), split).hours for ends in (better, worse))
    return least, most
