import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekConfig
from layers.balance import balance_loss
from layers.moe import MoE
from tests.layers.cases import SOFTMAX, model_of, some_ids, tiny
from tinygrad_ds import Tensor
from tinygrad_ds.gradient_check import numeric_gradient

FLOAT64 = np.dtype("float64")


def layer_of(config, seed=0):
    layer, rng = MoE(config, FLOAT64), np.random.default_rng(seed)
    for part in layer.published():
        part.data[...] = rng.normal(0, 0.5, part.data.shape)
    return layer


def silu(x):
    return x / (1 + np.exp(-x))


def expert(weights, prefix, x):
    gate, up, down = (weights[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return down @ (silu(gate @ x) * (up @ x))


def by_hand(config, weights, x):
    """One token through the equations of the V3 report (2.1.2) or of V2: y, the experts, their weights."""
    logits = weights["gate.weight"] @ x
    groups, kept, chosen = config.n_group, config.topk_group, config.num_experts_per_tok
    if config.has_correction_bias:
        s = 1 / (1 + np.exp(-logits))
        choice = s + weights["gate.e_score_correction_bias"]
        outside, of_group = -np.inf, lambda g: np.sort(g)[-2:].sum()
    else:
        s = choice = np.exp(logits) / np.exp(logits).sum()
        outside, of_group = 0.0, np.max
    best = sorted(range(groups), key=lambda g: -of_group(choice.reshape(groups, -1)[g]))[:kept]
    size = len(s) // groups
    left = [c if e // size in best else outside for e, c in enumerate(choice)]
    experts = sorted(sorted(range(len(s)), key=lambda e: -left[e])[:chosen])
    g = s[experts] / (s[experts].sum() if config.norm_topk_prob else 1) * config.routed_scaling_factor
    y = sum(g_e * expert(weights, f"experts.{e}.", x) for e, g_e in zip(experts, g))
    if config.n_shared_experts:
        y = y + expert(weights, "shared_experts.", x)
    return y, experts, g


@pytest.mark.parametrize("changes", [{}, {"norm_topk_prob": False, "n_shared_experts": 0}, SOFTMAX])
def test_against_the_equations_one_token_at_a_time(changes):
    config = tiny(**changes)
    layer = layer_of(config)
    weights = {part.name: part.data for part in layer.published()}
    x = np.random.default_rng(1).normal(size=(2, 5, config.hidden_size))
    y, _ = layer(Tensor(x))
    reached = layer.groups_reached()
    for place in np.ndindex(2, 5):
        expected, experts, g = by_hand(config, weights, x[place])
        np.testing.assert_allclose(y.data[place], expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(layer.chosen[place], experts)
        np.testing.assert_allclose(layer.weights[place], g, rtol=1e-12)
        assert reached[place] == len({e // 2 for e in experts}) <= config.topk_group


def test_gradients_reach_everything_but_the_choice():
    config = tiny()
    layer = layer_of(config)
    bias = layer.gate.e_score_correction_bias
    x = np.random.default_rng(1).normal(size=(1, 3, config.hidden_size))
    assert tg.gradcheck(lambda x: layer(x)[0], x).passed
    before = layer(Tensor(x))[0].data
    bias += 1e-9  # moves no choice, and so nothing at all
    np.testing.assert_array_equal(layer(Tensor(x))[0].data, before)
    assert bias.grad is None


def test_experts_are_only_their_own():
    """An expert's weights get a gradient from the tokens that it got, and zeros without any."""
    layer = layer_of(tiny())
    x = Tensor(np.random.default_rng(1).normal(size=(1, 2, 10)))
    layer(x)[0].sum().backward()
    got = np.bincount(layer.chosen.ravel(), minlength=6) > 0
    assert 0 < got.sum() < 6
    np.testing.assert_array_equal(np.abs(layer.experts.gate_up_proj.grad).max(axis=(1, 2)) > 0, got)


def test_loads_are_counted_over_recorded_passes_until_the_bias_moves():
    config = tiny()
    layer, expected = layer_of(config), np.zeros(6, int)
    layer.gate.e_score_correction_bias.data[...] = 0.25
    for seed in range(3):
        x = Tensor(np.random.default_rng(seed).normal(size=(2, 4, config.hidden_size)))
        layer(x)
        expected += np.bincount(layer.chosen.ravel(), minlength=6)
        with tg.no_grad():  # evaluation and generation are not training
            layer(x)
    np.testing.assert_array_equal(layer.load, expected)
    assert expected.sum() == 3 * 2 * 4 * config.num_experts_per_tok
    layer.update_router_bias(0.125)
    np.testing.assert_array_equal(
        layer.gate.e_score_correction_bias.data, 0.25 + 0.125 * np.sign(expected.mean() - expected)
    )
    assert not layer.load.any()


def test_the_bias_balances_loads():
    """Routers that all prefer the same experts: the largest load falls to near the mean."""
    layer = layer_of(tiny(topk_group=3))
    x = Tensor(np.random.default_rng(1).normal(size=(4, 16, 10)))
    layer.gate.e_score_correction_bias.data[...] = [2, 2, 0, 0, 0, 0]
    largest = []
    for _ in range(200):
        layer(x)
        largest.append(layer.load.max() / layer.load.mean())
        layer.update_router_bias(0.02)
    assert largest[0] == 3.0 and np.mean(largest[-20:]) < 1.4


def test_routers_without_bias_only_count_anew():
    layer = layer_of(tiny(**SOFTMAX))
    layer(Tensor(np.ones((1, 2, 10))))
    assert layer.load.sum() == 4
    layer.update_router_bias(0.1)
    assert not layer.load.any()


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 5), st.data())
def test_balance_loss_written_out(batch, time, experts, data):
    k = data.draw(st.integers(1, experts))
    s = np.random.default_rng(batch + 7 * time).uniform(0.05, 1, (batch, time, experts))
    expected = 0.0
    for sequence in s:
        for e in range(experts):
            among = sum(e in sorted(range(experts), key=lambda j: -s_t[j])[:k] for s_t in sequence)
            f = experts / (k * time) * among
            expected += f * np.mean([s_t[e] / s_t.sum() for s_t in sequence]) / batch
    scores = Tensor(s, requires_grad=True)
    loss = balance_loss(scores, k)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    numeric = numeric_gradient(lambda a: [balance_loss(Tensor(a[0]), k).data], [s], 0, [np.ones(())], 1e-5)
    np.testing.assert_allclose(scores.grad, numeric, atol=1e-9)
    # each token's scores are normalised: their size does not matter
    np.testing.assert_allclose((scores.grad * s).sum(axis=-1), 0, atol=1e-12)


def test_balance_loss_is_one_for_even_loads_and_largest_for_the_most_uneven():
    even = np.eye(4)[None].repeat(2, axis=0) * 0.6 + 0.1
    assert float(balance_loss(Tensor(even), 1)) == pytest.approx(1)
    uneven = np.full((1, 4, 4), 1e-9)
    uneven[..., 2] = 1
    assert float(balance_loss(Tensor(uneven), 1)) == pytest.approx(4)


def test_balance_loss_sees_neither_bias_nor_groups():
    """The K highest scores are counted, not the choices: they differ once b is not 0."""
    config = tiny()
    layer, x = layer_of(config), Tensor(np.random.default_rng(1).normal(size=(2, 5, 10)))
    _, before = layer(x, balance=True)
    chosen = layer.chosen
    layer.gate.e_score_correction_bias.data[...] = [5, 4, 3, 2, 1, 0]
    _, after = layer(x, balance=True)
    assert (layer.chosen != chosen).any()
    assert float(before) == float(after)
    assert float(layer(x)[1]) == 0.0


def test_balance_loss_counts_the_choices_where_asked():
    """Bias and groups then move f, which is the load of the last pass, and still not P."""
    config = tiny(balance_counts="choices", n_group=2, topk_group=1)
    assert DeepSeekConfig.from_dict(config.to_dict()).balance_counts == "choices"
    layer, x = layer_of(config), Tensor(np.random.default_rng(1).normal(size=(2, 5, 10)))
    losses = []
    for bias in (0, [5, 4, 3, 2, 1, 0]):
        layer.gate.e_score_correction_bias.data[...] = bias
        _, loss = layer(x, balance=True)
        s = layer.gate(x.reshape(10, 10)).scores.data.reshape(2, 5, 6)
        load = (layer.chosen[..., None] == np.arange(6)).sum(axis=(1, 2))  # (batch, E)
        p = (s / s.sum(axis=-1, keepdims=True)).mean(axis=1)
        assert float(loss) == pytest.approx((6 / (2 * 5) * load * p).sum() / 2, rel=1e-12)
        losses.append(float(loss))
    assert losses[0] != losses[1]


def test_the_loss_of_a_model_adds_the_layers():
    model, ids = model_of(first_k_dense_replace=0, num_nextn_predict_layers=1), some_ids(2, 6)
    _, layers = model.trunk(ids, balance=True)
    h = model.hidden(ids)
    _, module = model.mtp_hidden(1, ids[:, 1:], h[:, :-1], balance=True)
    trunk = sum(map(float, layers))
    assert float(model.losses(ids, ids, balance_weight=1.0).balance) == pytest.approx(trunk, rel=1e-13)
    both = model.losses(ids, ids, mtp_weight=0.1, balance_weight=1.0)
    assert float(both.balance) == pytest.approx(trunk + float(module), rel=1e-13)


def test_a_pass_may_take_the_experts_of_an_earlier_one():
    """Replayed choices hold whatever the bias now says, and no pass after them is bound."""
    layer, x = layer_of(tiny()), Tensor(np.random.default_rng(1).normal(size=(2, 5, 10)))
    y = layer(x)[0].data
    chosen = layer.chosen.copy()
    layer.gate.e_score_correction_bias.data[...] = [5, 4, 3, 2, 1, 0]
    layer.replay = chosen
    np.testing.assert_allclose(layer(x)[0].data, y, rtol=1e-12)
    layer.replay = None
    assert not np.array_equal(layer(x)[0].data, y) and not np.array_equal(layer.chosen, chosen)
