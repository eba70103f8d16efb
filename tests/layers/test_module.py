import copy

import numpy as np
import pytest

from layers import DeepSeekModel
from layers.linear import Linear
from layers.module import View, hollow
from tests.layers.cases import model_of, some_ids, tiny
from tinygrad_ds.device import owner

MTP = {"num_nextn_predict_layers": 1}


@pytest.fixture
def model():
    return model_of(dtype="float32", **MTP)


def backward(model):
    ids = some_ids(2, 7)
    model.loss(ids, np.roll(ids, -1, axis=1), mtp_weight=0.3 if model.mtp else 0.0).backward()


def test_published_parameters_are_pieces_of_the_leaves(model):
    leaves = dict(model.named_leaves())
    assert [id(leaf) for leaf in model.parameters()] == [id(leaf) for leaf in leaves.values()]
    pieces = dict(model.named_parameters())
    assert sum(piece.size for piece in pieces.values()) == sum(leaf.size for leaf in leaves.values())
    memory = {id(owner(leaf.data)) for leaf in leaves.values()}
    assert {id(owner(piece.data)) for piece in pieces.values()} == memory


def test_every_entry_of_a_leaf_is_in_exactly_one_published_parameter(model):
    for leaf in model.parameters():
        leaf.data[...] = 0
    for _, piece in model.named_parameters():
        piece.data[...] += 1
    assert all((leaf.data == 1).all() for leaf in model.parameters())


def test_views_follow_the_gradient_that_comes_later(model):
    """Views are taken once, before any gradient is there, as an optimizer would."""
    pieces = dict(model.named_parameters())
    assert all(piece.grad is None for piece in pieces.values())
    backward(model)
    for name, piece in model.named_parameters():
        np.testing.assert_array_equal(pieces[name].grad, piece.grad)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    stack = model.layers[1].mlp.experts.gate_up_proj
    width = tiny().moe_intermediate_size
    assert np.shares_memory(pieces[name].grad, stack.grad)
    np.testing.assert_array_equal(pieces[name].grad, stack.grad[2, width:])
    model.zero_grad()
    assert all(piece.grad is None for piece in pieces.values())


def test_writing_through_a_view_changes_the_leaf_and_is_noticed_by_backward(model):
    piece = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    ids = some_ids(1, 4)
    loss = model.loss(ids, ids)
    piece -= 0.5
    rows = model.layers[0].mlp.gate_up_proj.weight.data[tiny().intermediate_size :]
    np.testing.assert_array_equal(rows, piece.data)
    with pytest.raises(RuntimeError, match="written in place"):
        loss.backward()


def test_a_view_can_stand_in_a_computation_of_its_own():
    leaf = Linear(2, 4, np.dtype("float64"), merged=(("a", 1), ("b", 3))).weight
    leaf.data[...] = np.arange(8).reshape(4, 2)
    view = View(leaf, slice(1, 4))
    (view * view).sum().backward()
    np.testing.assert_array_equal(leaf.grad, [[0, 0], [4, 6], [8, 10], [12, 14]])
    view.grad = None
    assert not leaf.grad.any()


def test_buffers_are_named_and_have_no_gradient(model):
    buffers = dict(model.named_buffers())
    assert list(buffers) == [f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)]
    assert not buffers.keys() & dict(model.named_parameters()).keys()
    backward(model)
    assert all(buffer.grad is None for buffer in buffers.values())


def test_a_frozen_leaf_is_not_trained_but_still_published(model):
    published = [part.name for part in model.published()]
    model.embed_tokens.weight.requires_grad = False
    assert "model.embed_tokens.weight" not in dict(model.named_parameters())
    assert [part.name for part in model.published()] == published
    backward(model)
    assert model.embed_tokens.weight.grad is None


def test_a_copy_shares_nothing(model):
    """As a reference policy needs it: taken once, then the original moves on."""
    ids = some_ids(2, 5)
    other, before = copy.deepcopy(model), model(ids).data
    for leaf in model.parameters():
        leaf.data[...] += 1
    np.testing.assert_array_equal(other(ids).data, before)


def test_initial_values_depend_on_seed_and_name_alone():
    small, large = model_of(seed=3), model_of(seed=3, num_hidden_layers=3, **MTP)
    others = dict(large.named_parameters())
    for name, piece in small.named_parameters():
        np.testing.assert_array_equal(piece.data, others[name].data)
    again, other_seed = dict(model_of(seed=3).named_parameters()), dict(model_of(seed=4).named_parameters())
    for name, piece in small.named_parameters():
        np.testing.assert_array_equal(piece.data, again[name].data)
        same = np.array_equal(piece.data, other_seed[name].data)
        assert same == name.endswith("norm.weight")


def test_initial_values_have_the_distribution_that_the_config_says():
    config = tiny(hidden_size=64, vocab_size=500, initializer_range=0.006)
    model = DeepSeekModel(config)
    for name, piece in model.named_parameters():
        if piece.ndim < 2:
            assert (piece.data == 1).all(), name
    values = np.concatenate([p.data.ravel() for _, p in model.named_parameters() if p.ndim == 2]) / 0.006
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.std() - 1) < 4 / np.sqrt(2 * values.size)
    assert all(not buffer.data.any() for _, buffer in model.named_buffers())
    biased = DeepSeekModel(tiny(attention_bias=True))
    biases = [p.data for name, p in biased.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 3 * 2 and not any(bias.any() for bias in biases)


def test_hollow_parameters_have_shapes_but_no_memory_until_they_are_allocated():
    """Then initialize draws what it draws for a model that was never hollow."""
    whole = model_of(dtype="float32", seed=3, **MTP)
    with hollow():
        model = model_of(dtype="float32", seed=None, **MTP)
    assert [leaf.shape for leaf in model.parameters()] == [leaf.shape for leaf in whole.parameters()]
    for leaf in model.parameters():
        assert leaf.data.size and not any(leaf.data.strides) and owner(leaf.data).nbytes == 4
    model.allocate()
    model.initialize(seed=3)
    for (name, one), (_, other) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.data, other.data, err_msg=name)
    kept = [leaf.data for leaf in model.parameters()]
    model.allocate()
    assert all(leaf.data is array for leaf, array in zip(model.parameters(), kept))
    model.release()
    assert all(owner(leaf.data).nbytes == 4 for leaf in model.parameters())
    assert Linear(2, 3, np.dtype("float32")).weight.data.strides == (8, 4)
