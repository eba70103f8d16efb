import numpy as np
import pytest

from layers.attention import GroupedAttention
from layers.context import make_context
from layers.rope import Rotary
from tests.layers.cases import model_of, some_ids, tiny
from tinygrad_ds import Tensor

FLOAT64 = np.dtype("float64")
SIZES = {"num_attention_heads": 4, "qk_nope_head_dim": 2, "qk_rope_head_dim": 4, "v_head_dim": 3}


def config_of(kind, kv_heads):
    return tiny(**SIZES, attention_kind=kind, num_key_value_heads=kv_heads)


def layer_of(config):
    layer, rng = GroupedAttention(config, 0, FLOAT64), np.random.default_rng(0)
    for leaf in layer.parameters():
        leaf.data[...] = rng.normal(0, 0.5, leaf.shape)
    return layer


def run(layer, config, x):
    x = Tensor(x, requires_grad=True)
    y = layer(x, make_context(Rotary(config, FLOAT64), *x.shape[:2]))
    y.backward(np.ones(y.shape))
    return y.data, x.grad


@pytest.mark.parametrize("kind, kv_heads", [("gqa", 2), ("mqa", 1)])
def test_grouped_heads_are_multi_head_attention_with_repeated_keys_and_values(kind, kv_heads):
    grouped, every = config_of(kind, kv_heads), config_of("mha", 4)
    few, many = layer_of(grouped), layer_of(every)
    for name, leaf in many.named_leaves():
        source = dict(few.named_leaves())[name].data
        if name in ("k_proj.weight", "v_proj.weight"):
            by_head = source.reshape(kv_heads, -1, source.shape[1])
            source = by_head.repeat(4 // kv_heads, axis=0).reshape(leaf.shape)
        leaf.data[...] = source
    x = np.random.default_rng(1).normal(size=(2, 5, grouped.hidden_size))
    for ours, theirs in zip(run(few, grouped, x), run(many, every, x)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)
    for name in ("k_proj", "v_proj"):  # the gradient of a shared head is the sum over those that share it
        gradient = getattr(many, name).weight.grad.reshape(kv_heads, 4 // kv_heads, -1).sum(axis=1)
        np.testing.assert_allclose(
            getattr(few, name).weight.grad.reshape(gradient.shape), gradient, atol=1e-11
        )


@pytest.mark.parametrize("kind, kv_heads", [("mla", 4), ("mha", 4), ("gqa", 2), ("mqa", 1)])
def test_a_model_takes_any_attention(kind, kv_heads):
    """The same model otherwise: every other parameter has the same name, shape and initial value."""
    model = model_of(**SIZES, attention_kind=kind, num_key_value_heads=kv_heads)
    reference = dict(model_of(**SIZES).named_parameters())
    for name, piece in model.named_parameters():
        if ".self_attn." not in name:
            np.testing.assert_array_equal(piece.data, reference.pop(name).data)
    assert all(".self_attn." in name for name in reference)
    assert np.isfinite(model(some_ids(2, 6)).data).all()
