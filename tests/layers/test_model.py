import tracemalloc

import numpy as np
import pytest

import tinygrad_ds as tg
from layers import DeepSeekModel
from layers.precision import EXACT, Bfloat16, Fp8, precision
from tests.layers.cases import SOFTMAX, YARN, distance, model_of, some_ids, tiny
from tinygrad_ds.gradient_check import numeric_gradient, relative_errors

FULL = {"num_nextn_predict_layers": 2, "rope_scaling": YARN, "attention_bias": True}
MODELS = {
    "v3": FULL | {"num_nextn_predict_layers": 1},
    "v2": SOFTMAX | {"rope_interleave": False, "tie_word_embeddings": True},
    "gqa": {"attention_kind": "gqa", "num_attention_heads": 4, "num_key_value_heads": 2},
}


def batch_of(batch=2, time=9):
    ids = some_ids(batch, time, seed=5)
    targets = np.roll(ids, -1, axis=1)
    targets[:, -1] = -100
    targets[0, :2] = -100
    return ids, targets


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_every_parameter_against_differences(name):
    """The largest and a random entry of every leaf, in the loss with all its parts.

    Choices of experts are too clear to flip within a step.
    """
    model, (ids, targets) = model_of(seed=2, **MODELS[name]), batch_of()
    mtp_weight = 0.3 if model.mtp else 0.0

    def value(_):
        with tg.no_grad():
            return [model.loss(ids, targets, mtp_weight, balance_weight=0.1).data]

    model.loss(ids, targets, mtp_weight, balance_weight=0.1).backward()
    rng = np.random.default_rng(0)
    leaves = dict(model.named_leaves())
    arrays = [leaf.data for leaf in leaves.values()]
    for position, (path, leaf) in enumerate(leaves.items()):
        where = {tuple(rng.integers(0, size) for size in leaf.shape) for _ in range(1)}
        where |= {np.unravel_index(np.abs(leaf.grad).argmax(), leaf.shape)}
        numeric = gradient_in_place(value, arrays, position, where)
        rows = tuple(zip(*where))
        # an entry far below the tensor's largest is compared relative to a thousandth of that one
        floor = np.abs(leaf.grad).max()
        errors = relative_errors(np.append(leaf.grad[rows], floor), np.append(numeric[rows], floor))
        assert errors.max() < 1e-6, path


def gradient_in_place(value, arrays, position, where):
    """`numeric_gradient` moves entries of a copy; here the model reads the array itself."""
    original = arrays[position].copy()

    def moved(changed):
        arrays[position][...] = changed[position]
        try:
            return value(changed)
        finally:
            arrays[position][...] = original

    return numeric_gradient(moved, arrays, position, [np.ones(())], where=where)


def test_a_tied_embedding_gets_both_gradients():
    """That of the rows that were looked up, and that of the head, which the loss is fused with."""
    tied, untied = model_of(tie_word_embeddings=True), model_of()
    ids, targets = batch_of()
    weights = dict(tied.named_parameters())
    for name, parameter in untied.named_parameters():
        source = name.replace("lm_head.weight", "model.embed_tokens.weight")
        parameter.data[...] = weights[source].data
    for model in (tied, untied):
        model.loss(ids, targets).backward()
    both = untied.embed_tokens.weight.grad + untied.lm_head.weight.grad
    np.testing.assert_allclose(tied.embed_tokens.weight.grad, both, rtol=1e-12, atol=1e-14)
    assert np.abs(untied.lm_head.weight.grad).min() > 0


def test_training_never_holds_all_logits():
    """Tokens times vocabulary is by far the largest array that the loss could ask for."""
    model, ids = model_of(dtype="float32", vocab_size=4000), some_ids(20, 64)
    model.loss(ids, ids).backward()  # compiles kernels, which takes memory too
    model.zero_grad()
    tracemalloc.start()
    try:
        model.loss(ids, ids).backward()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ids.size * 4000 * 4


def test_one_batch_is_learnt_by_heart():
    """Adam's steps, written out; the embedding, the experts and the MTP module all take part."""
    model, (ids, targets) = model_of(dtype="float32", num_nextn_predict_layers=1), batch_of()
    leaves = list(model.parameters())
    mean, square = [np.zeros_like(p.data) for p in leaves], [np.zeros_like(p.data) for p in leaves]
    for step in range(1, 61):
        loss = model.loss(ids, targets, mtp_weight=0.3)
        loss.backward()
        for p, m, v in zip(leaves, mean, square):
            m += 0.1 * (p.grad - m)
            v += 0.05 * (p.grad**2 - v)
            p.data -= 0.02 * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        model.zero_grad()
    assert float(loss) < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_batch_permutes_the_outputs(name):
    model, ids, order = model_of(**MODELS[name]), some_ids(5, 7), [3, 0, 4, 1, 2]
    np.testing.assert_allclose(model(ids[order]).data, model(ids).data[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_token_never_sees_what_comes_later(name):
    model, ids = model_of(**MODELS[name]), some_ids(2, 8)
    other = ids.copy()
    other[:, 5:] = (other[:, 5:] + 1) % tiny().vocab_size
    np.testing.assert_allclose(model(other).data[:, :5], model(ids).data[:, :5], rtol=1e-12, atol=1e-12)
    assert np.abs(model(other).data[:, 5] - model(ids).data[:, 5]).max() > 1e-3


def test_documents_packed_into_one_row_are_as_if_alone():
    """`first` is the column where each token's document begins: attention and positions start anew there."""
    model, ids = model_of(seed=1, **FULL), some_ids(1, 12)
    starts = [0, 5, 9, 12]
    first = np.repeat(starts[:-1], np.diff(starts))[None]
    packed = model(ids, first=first).data
    for begin, end in zip(starts, starts[1:]):
        np.testing.assert_allclose(packed[:, begin:end], model(ids[:, begin:end]).data, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.01)])
def test_micro_batches_add_up_to_the_whole_batch(weights):
    """Losses and gradients, although micro-batches ignore different numbers of targets."""
    model, (ids, targets) = model_of(**FULL), batch_of(batch=6)
    targets[3, 2:6] = -100
    whole = model.loss(ids, targets, *weights)
    whole.backward()
    leaves = [leaf for leaf in model.parameters() if leaf.grad is not None]  # all, if MTP has a weight
    expected = [leaf.grad for leaf in leaves]
    model.zero_grad()
    count, total = model.count_targets(targets), 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = model.loss(ids[rows], targets[rows], *weights, count=count)
        part.backward()
        total += float(part)
    assert total == pytest.approx(float(whole), rel=1e-12)
    for leaf, gradient in zip(leaves, expected):
        assert distance(leaf.grad, gradient) < 1e-11


def test_one_number_is_count_enough_where_all_rows_ignore_the_same_places():
    model, ids = model_of(**FULL), some_ids(4, 6)
    targets = np.roll(ids, -1, axis=1)
    targets[:, -1] = -100
    whole = float(model.loss(ids, targets, 0.3, 0.01))
    parts = [model.loss(ids[i : i + 1], targets[i : i + 1], 0.3, 0.01, count=4 * 5) for i in range(4)]
    assert sum(map(float, parts)) == pytest.approx(whole, rel=1e-12)


def test_a_micro_batch_without_targets_adds_nothing_but_its_share_of_balance():
    model, ids = model_of(**FULL), some_ids(2, 5)
    nothing = np.full_like(ids, -100)
    losses = model.losses(ids, nothing, 0.3, 1.0, count=np.array([10, 8, 6, 4]))
    assert (float(losses.main), float(losses.mtp)) == (0.0, 0.0)
    whole = model.losses(ids, ids, 0.3, 1.0)
    assert float(losses.balance) == pytest.approx(float(whole.balance) / 2, rel=1e-12)
    assert float(model.loss(ids, nothing, 0.3, count=10)) == 0.0


def test_parts_of_the_loss_are_weighted_as_asked():
    model, (ids, targets) = model_of(**FULL), batch_of()
    losses = model.losses(ids, targets, 0.3, 0.01)
    assert float(losses.total) == pytest.approx(
        float(losses.main) + 0.3 * float(losses.mtp) + 0.01 * float(losses.balance), rel=1e-14
    )
    plain = model.losses(ids, targets)
    assert (plain.mtp, plain.balance) == (None, None)
    assert float(plain.total) == float(losses.main)
    p = tg.softmax(model(ids)).data
    counted = targets >= 0
    mean = -np.log(np.take_along_axis(p, np.maximum(targets, 0)[..., None], axis=-1)[..., 0])[counted].mean()
    assert float(plain.main) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("products", [EXACT, Bfloat16(), Fp8(), Fp8(stochastic=True)])
def test_recomputing_gives_the_same_gradients_and_counts_loads_once(products):
    """To the bit, and wherever backward is called: roundings are those of the first time."""
    model, (ids, targets) = model_of(**FULL), batch_of()
    grads, loads = [], []
    for model.recompute in (False, True):
        model.zero_grad()
        model.update_router_bias(0.0)
        with precision(products, seed=3):
            loss = model.loss(ids, targets, 0.3, 0.01)
        loss.backward()
        grads.append([leaf.grad for leaf in model.parameters()])
        loads.append([moe.load.copy() for moe in model.moe_layers().values()])
    for plain, again in zip(*grads):
        np.testing.assert_array_equal(again, plain)
    for plain, again in zip(*loads):
        np.testing.assert_array_equal(again, plain)


def test_float32_and_float64_models_of_one_seed_are_the_same_model():
    single, double = model_of(dtype="float32"), model_of(dtype="float64")
    for a, b in zip(single.parameters(), double.parameters()):
        assert a.dtype == np.float32 and b.dtype == np.float64
        np.testing.assert_array_equal(a.data, b.data.astype(np.float32))
    ids = some_ids(2, 6)
    assert single(ids).dtype == np.float32
    assert distance(single(ids).data, double(ids).data) < 1e-5


def test_the_same_seed_gives_the_same_bits():
    def run():
        model, (ids, targets) = model_of(dtype="float32", **FULL), batch_of()
        model.loss(ids, targets, 0.3, 0.01).backward()
        return [leaf.grad.tobytes() for leaf in model.parameters()]

    assert run() == run()


def test_no_tokens_give_no_logits():
    assert model_of()(np.zeros((2, 0), int)).shape == (2, 0, 13)
    assert model_of()(np.zeros((0, 3), int)).shape == (0, 3, 13)


@pytest.mark.parametrize(
    "ids, words",
    [
        ([[0, 13]], "ids hold 13 but vocab_size is 13: 0 to 12"),
        ([[-1, 2]], "ids hold -1 but vocab_size is 13"),
        ([[0.5, 1.0]], "ids are float64"),
        ([1, 2], r"ids are int64\(2,\) but must be integers of shape \(batch, time\)"),
        ([[0] * 65], "65 tokens but max_position_embeddings is 64"),
    ],
)
def test_ids_that_cannot_be(ids, words):
    with pytest.raises(ValueError, match=words):
        model_of()(np.array(ids))


def test_losses_that_cannot_be():
    model, ids = model_of(), some_ids(1, 4)
    with pytest.raises(ValueError, match=r"targets have shape \(1, 3\) but ids \(1, 4\)"):
        model.loss(ids, ids[:, :3])
    with pytest.raises(ValueError, match="all targets are -100"):
        model.loss(ids, np.full_like(ids, -100))
    with pytest.raises(ValueError, match="no MTP modules"):
        model.loss(ids, ids, mtp_weight=0.3)
    with pytest.raises(ValueError, match=r"first has shape \(3,\) but must be \(1,\) or \(1, 4\)"):
        model(ids, first=[0, 0, 0])
    with pytest.raises(ValueError, match="computes in float32 or float64"):
        DeepSeekModel(tiny(), dtype="bfloat16")
