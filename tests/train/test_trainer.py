import contextlib

import numpy as np
import pytest

from tests.train.tiny import tiny_model, tiny_rows
from train.optimizer import AdamW
from train.trainer import State, TrainingStopped, Work, accumulate, train


def loss(model, part, count):
    losses = model.losses(*part, 0.3, 0.1, count=count)
    return losses.total, {"main": float(losses.main)}


def cut(ids, targets, model, sizes):
    """The batch as micro-batches of these sizes."""
    ends = np.cumsum(sizes)
    parts = [(ids[end - size : end], targets[end - size : end]) for end, size in zip(ends, sizes)]
    return Work(parts, sum(model.count_targets(part[1]) for part in parts), float(ids.size))


def next_work(model, sizes=(4,)):
    """A new batch for every step, by the step's number alone."""
    return lambda state: cut(*tiny_rows(sum(sizes), seed=state.step), model, sizes)


def run(model, optimizer, total, **options):
    state = options.pop("state", None) or State(total=total)
    options = {"learning_rate": lambda state: 0.01, **options}
    train(
        model,
        optimizer,
        options.pop("next_work", next_work(model)),
        options.pop("loss", loss),
        state,
        **options,
    )
    return state


def gradients(sizes):
    model = tiny_model()
    numbers = accumulate(model, cut(*tiny_rows(16), model, sizes), loss, State(total=1))
    return numbers, {path: leaf.grad for path, leaf in model.named_leaves()}


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (1,) * 16, (9, 1, 6)])
def test_micro_batches_add_up_to_the_batch(sizes):
    """Also where targets are spread unevenly, for the main loss, multi-token prediction and balance alike."""
    whole, in_pieces = gradients((16,)), gradients(sizes)
    assert in_pieces[0] == pytest.approx(whole[0], rel=1e-12)
    for path, grad in whole[1].items():
        scale = abs(grad).max()
        np.testing.assert_allclose(in_pieces[1][path], grad, rtol=1e-12, atol=1e-12 * scale, err_msg=path)


def test_loop_with_micro_batches_trains_the_same_network():
    one, other = tiny_model(), tiny_model()
    run(one, AdamW(one, lr=0), 96, next_work=next_work(one, (4,)))
    run(other, AdamW(other, lr=0), 96, next_work=next_work(other, (1, 3)))
    for a, b in zip(one.parameters(), other.parameters()):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-8, atol=1e-10)


def test_loop_learns_a_batch_by_heart():
    model = tiny_model("float32")
    seen = []
    batch = cut(*tiny_rows(2), model, (2,))
    run(
        model,
        AdamW(model, lr=0, weight_decay=0.0),
        16 * 60,
        next_work=lambda state: batch,
        learning_rate=lambda state: 0.02,
        after=[lambda state, record: seen.append(record["main"])],
    )
    assert seen[0] > 3 and seen[-1] < 0.02


def test_records_tell_of_each_step():
    model, records = tiny_model(), []
    state = run(
        model,
        AdamW(model, lr=0),
        total=80,
        learning_rate=lambda state: 1e-3 * (state.step + 1),
        after=[lambda state, record: records.append(record)],
    )
    assert [r["step"] for r in records] == [1, 2, 3] and [r["done"] for r in records] == [32, 64, 96]
    assert [r["lr"] for r in records] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert state.done == 96 and {"batches", "forward", "backward", "optimizer"} <= state.phases.keys()
    tokens = {
        "model.layers.1.mlp": 4 * 8,
        "model.layers.2.mlp": 4 * 7,
    }  # multi-token prediction sees one less
    for record in records:
        loads = {name: load.sum() for name, load in record["loads"].items()}
        assert loads == {name: 2 * count for name, count in tokens.items()}  # two experts each


def test_router_bias_moves_by_its_speed_towards_even_loads():
    model, records = tiny_model(), []
    run(
        model,
        AdamW(model, lr=0),
        total=64,
        bias_speed=lambda state: 0.5 if state.step == 0 else 0.0,
        after=[lambda state, record: records.append(record)],
    )
    for name, moe in model.moe_layers().items():
        load = records[0]["loads"][name]
        assert (moe.gate.e_score_correction_bias.data == 0.5 * np.sign(load.mean() - load)).all()
        assert not moe.load.any()


def test_gradients_and_context_can_be_replaced():
    model, inside = tiny_model(), []

    @contextlib.contextmanager
    def around():
        inside.append("in")
        yield
        inside.append("out")

    def gradients(model, work, loss, state):
        inside.append("gradients")
        return accumulate(model, work, loss, state)

    run(model, AdamW(model, lr=0), 32, gradients=gradients, around=around)
    assert inside == ["in", "gradients", "out"]


@pytest.mark.parametrize(
    ("where", "named"), [("loss", "the loss is nan"), ("gradient", "the gradient's norm is inf")]
)
def test_what_is_not_finite_stops_before_anything_changes(where, named):
    model, weights, records = tiny_model(), {}, []

    def broken(model, part, count):
        value, parts = loss(model, part, count)
        if len(records) == 2:
            weights.update({path: leaf.data.copy() for path, leaf in model.named_leaves()})
            return value * (np.nan if where == "loss" else 1e300), parts
        return value, parts

    with np.errstate(all="ignore"), pytest.raises(TrainingStopped, match=f"step 3: {named}"):
        run(model, AdamW(model, lr=0), 320, loss=broken, after=[lambda s, r: records.append(r)])
    assert len(records) == 2
    assert all((leaf.data == weights[path]).all() for path, leaf in model.named_leaves())
