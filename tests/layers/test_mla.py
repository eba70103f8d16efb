import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekConfig
from layers.context import make_context
from layers.mla import MLA
from layers.rope import Rotary
from tests.layers.cases import GOLDEN, model_of, some_ids, tiny
from tinygrad_ds import Tensor

FLOAT64 = np.dtype("float64")


def layer_of(config, seed=0):
    layer, rng = MLA(config, 0, FLOAT64), np.random.default_rng(seed)
    for leaf in layer.parameters():
        leaf.data[...] = rng.normal(0, 0.5, leaf.shape)
    return layer


def run(layer, config, x, g, form, first=None):
    """Output and all gradients of one attention layer in one form."""
    layer.form = form
    layer.zero_grad()
    x = Tensor(x, requires_grad=True)
    y = layer(x, make_context(Rotary(config, FLOAT64), *x.shape[:2], first=first))
    y.backward(g)
    return [y.data, x.grad, *(leaf.grad for leaf in layer.parameters())]


@settings(max_examples=40)
@given(
    st.fixed_dictionaries(
        {
            "num_attention_heads": st.integers(1, 3),
            "q_lora_rank": st.sampled_from([None, 2, 5]),
            "kv_lora_rank": st.integers(2, 7),
            "qk_nope_head_dim": st.integers(1, 5),
            "qk_rope_head_dim": st.sampled_from([2, 6]),
            "v_head_dim": st.integers(1, 5),
            "rope_interleave": st.booleans(),
            "attention_bias": st.booleans(),
        }
    ),
    st.integers(1, 3),
    st.integers(1, 6),
    st.booleans(),
)
def test_absorbed_and_expanded_are_equal_forward_and_backward(changes, batch, time, padded):
    config, rng = tiny(**changes), np.random.default_rng(time)
    layer = layer_of(config)
    x, g = rng.normal(size=(2, batch, time, config.hidden_size))
    first = rng.integers(0, time, batch) if padded else None
    for one, other in zip(*(run(layer, config, x, g, form, first) for form in ("expanded", "absorbed"))):
        # a gradient that nearly cancels, as behind a norm of two numbers, is judged on a fixed scale
        assert np.abs(one - other).max() < 1e-10 * max(np.abs(other).max(), 1e-2)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_against_the_equations_one_token_and_head_at_a_time(form):
    """Section 2.1 of the V2 report with loops, on an odd layout: pairs turned by complex numbers."""
    config = tiny(qk_rope_head_dim=4)
    layer = layer_of(config)
    h, r, d_n, d_r, d_v = 2, 4, 3, 4, 5
    x = np.random.default_rng(1).normal(size=(1, 6, config.hidden_size))
    layer.form = form
    y = layer(Tensor(x), make_context(Rotary(config, FLOAT64), 1, 6)).data

    def norm(v, weight):
        return v / np.sqrt((v * v).mean() + 1e-6) * weight

    def turn(v, t):
        z = (v[0::2] + 1j * v[1::2]) * np.exp(1j * t * 10000.0 ** (-np.arange(d_r // 2) * 2 / d_r))
        return np.stack([z.real, z.imag], axis=-1).ravel()

    w = {name: leaf.data for name, leaf in layer.named_leaves()}
    w_kvb = w["kv_b_proj.weight"].reshape(h, d_n + d_v, r)
    queries, keys, values = [], [], []
    for t, x_t in enumerate(x[0]):
        c_q = norm(w["q_a_proj.weight"] @ x_t, w["q_a_layernorm.weight"])
        q = (w["q_b_proj.weight"] @ c_q).reshape(h, d_n + d_r)
        c, k_r = np.split(w["kv_a_proj_with_mqa.weight"] @ x_t, [r])
        kv = w_kvb @ norm(c, w["kv_a_layernorm.weight"])
        queries.append([np.concatenate([q_h[:d_n], turn(q_h[d_n:], t)]) for q_h in q])
        keys.append([np.concatenate([kv_h[:d_n], turn(k_r, t)]) for kv_h in kv])
        values.append([kv_h[d_n:] for kv_h in kv])
    for t in range(6):
        o = []
        for head in range(h):
            s = np.array([queries[t][head] @ keys[j][head] for j in range(t + 1)]) * (d_n + d_r) ** -0.5
            p = np.exp(s - s.max())
            o.append(sum(p[j] * values[j][head] for j in range(t + 1)) / p.sum())
        np.testing.assert_allclose(y[0, t], w["o_proj.weight"] @ np.concatenate(o), rtol=1e-9, atol=1e-12)


def counted_products(config, form, time, length):
    """Multiplications of the calls themselves, per head: W_kvb, the scores and the weighted sums."""
    r, d_n, d_r, d_v = (
        config.kv_lora_rank,
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.v_head_dim,
    )
    if form == "expanded":
        return length * r * (d_n + d_v) + time * length * (d_n + d_r) + time * length * d_v
    return time * d_n * r + time * length * (r + d_r) + time * length * r + time * r * d_v


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from(["tiny", "deepseek_v3", "deepseek_v2_lite"]))
def test_the_form_that_is_chosen_has_the_fewer_products(time, before, name):
    config = tiny() if name == "tiny" else DeepSeekConfig.from_json(GOLDEN / "configs" / f"{name}.json")
    layer = MLA(config, 0, FLOAT64)
    products = {
        form: counted_products(config, form, time, time + before) for form in ("expanded", "absorbed")
    }
    assert products[layer.cheaper_form(time, time + before)] == min(products.values())


def test_v3_decodes_absorbed_and_trains_expanded():
    layer = MLA(DeepSeekConfig.from_json(GOLDEN / "configs" / "deepseek_v3.json"), 0, FLOAT64)
    assert layer.cheaper_form(1, 4096) == "absorbed"
    assert layer.cheaper_form(4096, 4096) == "expanded"


def test_the_chosen_form_is_the_one_that_runs(monkeypatch):
    """Left to itself a layer may take either form; told to, it takes that one."""
    model, ids, ran = model_of(), some_ids(1, 5), []
    for form in ("expanded", "absorbed"):
        original = getattr(MLA, form)

        def spy(self, *args, original=original, form=form):
            ran.append(form)
            return original(self, *args)

        monkeypatch.setattr(MLA, form, spy)
    for wanted in ("expanded", "absorbed", None):
        ran.clear()
        for block in model.layers:
            block.self_attn.form = wanted
        model(ids)
        expected = wanted or model.layers[0].self_attn.cheaper_form(5, 5)
        assert ran == [expected] * len(model.layers)


def test_gradients_are_those_of_the_outputs():
    config = tiny(attention_bias=True)
    layer = layer_of(config)
    context = make_context(Rotary(config, FLOAT64), 2, 4)
    x = np.random.default_rng(0).normal(size=(2, 4, config.hidden_size))
    assert tg.gradcheck(lambda x: layer(x, context), x).passed
