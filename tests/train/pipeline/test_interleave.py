"""Passes of two micro-batches in turns, in one process."""

import numpy as np
import pytest

import tinygrad_ds as tg
from layers import DeepSeekModel
from tests.train.tiny import CONFIG, tiny_rows
from train.errors import UserError
from train.parallel.communicator import Communicator
from train.pipeline.executor import Executor
from train.pipeline.interleave import Interleaver
from train.pipeline.measured import captions, meanwhile, recorded, trace_events
from train.pipeline.schedule import gpipe
from train.pipeline.stage import Stage, split_layers
from train.pipeline.steps import read


class OnlyRank:
    """What a communicator of one rank asks of MPI."""

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 1


@pytest.fixture
def ranks():
    communicator = Communicator(OnlyRank())
    communicator.trace.recording = True
    return communicator


def network():
    return DeepSeekModel(CONFIG.replace(initializer_range=0.2, num_hidden_layers=3), dtype="float64")


def parts(count):
    rows = [tiny_rows(2, seed=i) for i in range(count)]
    return rows, sum(network().count_targets(targets) for _, targets in rows)


def loss(model, part, count):
    losses = model.losses(*part, 0.3 if model.mtp else 0.0, 0.1, count=count)
    return losses.total, {"main": float(losses.main)}


def by_schedule(ranks, text, splits, count=2):
    """The gradients by these steps on one rank that has all stages, which have so many layers each."""
    model, interleaver = network(), Interleaver(ranks)
    ends = np.cumsum(splits)
    stages = {
        stage: Stage(model, range(end - layers, end), interleaver)
        for stage, (layers, end) in enumerate(zip(splits, ends))
    }
    executor = Executor(stages, lambda ranks, microbatches: read(text), ranks, interleaver)
    numbers = executor.run(*parts(count), loss)
    return numbers, {path: leaf.grad for path, leaf in model.named_leaves()}, executor


def as_usual(count=2):
    model = network()
    rows, targets = parts(count)
    values = [loss(model, part, targets)[0] for part in rows]
    for value in values:
        value.backward()
    return sum(map(float, values)), {path: leaf.grad for path, leaf in model.named_leaves()}


WHOLE = {
    "one after the other": ("0F0,0B0,0F1,0B1", [3]),
    "halves": ("0F0,0I0,0F1,0W0,0I1,0W1", [3]),
    "interleaved": ("0F0,(0F1;0B0)OVERLAP_F_B,0B1", [3]),
    "two stages": ("0F0,1F0,0F1,1F1,1B1,1B0,0B0,0B1", [1, 2]),
    "two stages, interleaved": ("0F0,1F0,(0F1;1B0)OVERLAP_F_B,(1F1;0B0)OVERLAP_F_B,1I1,0I1,0W1,1W1", [2, 1]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_any_order_gives_the_same_gradients(ranks, name):
    text, splits = WHOLE[name]
    with tg.using(kernels="reference"):
        numbers, gradients, _ = by_schedule(ranks, text, splits)
        total, expected = as_usual()
    assert numbers["loss"] == pytest.approx(total, rel=1e-13)
    for path, grad in expected.items():
        assert abs(gradients[path] - grad).max() < 1e-13 * abs(grad).max(), path


def test_components_of_two_passes_take_turns(ranks):
    """Forward from the first layer to the head, backward from the head to the first layer."""
    by_schedule(ranks, *WHOLE["interleaved"])
    names = [span.name for span in ranks.trace.components]
    forth = [
        "embedding",
        *(f"{half} {i}" for i in range(3) for half in ("attention", "feed forward")),
        "head",
    ]
    both = names[len(forth) : 3 * len(forth)]
    assert names[: len(forth)] == [f"0F0 {name}" for name in forth]
    assert both[::2] == [f"0F1 {name}" for name in forth]
    assert both[1::2] == [f"0B0 {name}" for name in forth[::-1]]
    spans = ranks.trace.components
    assert all(one.ended <= other.began for one, other in zip(spans, spans[1:]))


def test_stage_inputs_alive_are_counted_and_weights_wait(ranks):
    _, _, executor = by_schedule(ranks, "0F0,0F1,0I0,0I1,0W1,0W0", [3])
    assert executor.most_alive == 2
    _, _, executor = by_schedule(ranks, "0F0,0I0,0W0,0F1,0B1", [3])
    assert executor.most_alive == 1


def test_a_stage_has_its_own_parts_under_their_own_names():
    model = network()
    first, last = (Stage(model, layers, Interleaver(Communicator(OnlyRank()))) for layers in ([0], [1, 2]))
    names = [{part.name for part in stage.published()} for stage in (first, last)]
    assert names[0] | names[1] == {part.name for part in model.published()}
    assert names[0] & names[1] == {"model.embed_tokens.weight"}  # which MTP needs too
    assert not any(name.startswith("model.layers.1") for name in names[0])
    assert first.moe_layers().keys() == set() and len(last.moe_layers()) == 3
    assert dict(first.named_leaves())["layers.0.mlp.down_proj.weight"] is model.layers[0].mlp.down_proj.weight


def test_layers_are_split_evenly_and_never_to_nothing():
    assert [*map(len, split_layers(7, 3))] == [3, 2, 2] and split_layers(7, 3)[-1] == range(5, 7)
    with pytest.raises(UserError, match="has 2 layers but the pipeline 3 stages"):
        split_layers(2, 3)


def test_chart_tells_where_ranks_take_turns_and_the_trace_what_ran_meanwhile(ranks):
    by_schedule(ranks, "0F0,0F1,0B0,0B1", [3])
    trace = ranks.trace
    flight = type("Pending", (), {"what": "rows", "posted": trace.components[2].began, "buffers": ()})
    flight.seen = trace.components[4].ended
    trace.landed(flight)
    batch = recorded(gpipe(1, 2), [trace])
    assert meanwhile(trace.flights[0], trace.components) == [span.name for span in trace.components[2:5]]
    assert [len(spans) for spans in batch.measured.starts] == [4]
    assert batch.simulated.length <= batch.measured.length
    assert any("1 ranks on 2 cores (ms)" in name for name in captions(batch, 2))
    assert any("which take turns" in name for name in captions(batch, 0))
    events = trace_events(batch)["traceEvents"]
    told = [event for event in events if event.get("ph") == "b"]
    assert [event["args"]["meanwhile"] for event in told] == [[s.name for s in trace.components[2:5]]]
