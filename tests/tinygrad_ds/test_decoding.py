"""The functions of decoding: every twin equals its reference, and the references equal the primitives."""

import gc

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tinygrad_ds.inference import inference_functions
from tinygrad_ds.kernels.cpu import decoding
from tinygrad_ds.kernels.table import INFERENCE_TWINS
from tinygrad_ds.ops.decoding import (
    BlockWeights,
    LatentAttentionWeights,
    NetworkWeights,
    linear_step,
    moe_step,
    token_step,
)
from tinygrad_ds.ops.routing import TOPK_METHODS

TOLERANCE = {"float64": 1e-12, "float32": 1e-4}  # relative to the largest entry, after up to three layers
RULES = {
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": None,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}


def network(rng, dtype, *, hidden, heads, d_n, d_r, d_v, r, r_q, width, experts, shared, biased, layers):
    """The weights of a network whose first layer is dense."""

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(dtype)

    def attention():
        return LatentAttentionWeights(
            draw(r_q, hidden) if r_q else None,
            1 + draw(r_q) if r_q else None,
            draw(heads * (d_n + d_r), r_q or hidden),
            draw(r + d_r, hidden),
            1 + draw(r),
            draw(heads * (d_n + d_v), r),
            draw(hidden, heads * d_v),
        )

    blocks = []
    for layer in range(layers):
        norms = 1 + draw(hidden), attention(), 1 + draw(hidden)
        if layer == 0:
            blocks.append(BlockWeights(*norms, draw(2 * (width + 1), hidden), draw(hidden, width + 1)))
            continue
        of_experts = draw(experts, 2 * width, hidden), draw(experts, hidden, width), draw(experts, hidden)
        of_shared = (draw(2 * shared, hidden), draw(hidden, shared)) if shared else (None, None)
        blocks.append(BlockWeights(*norms, *of_experts, draw(experts) if biased else None, *of_shared))
    return NetworkWeights(draw(11, hidden), tuple(blocks), 1 + draw(hidden), draw(9, hidden))


def case(seed, dtype, batch, length, interleaved=True, rules=RULES, **sizes):
    """Arguments and options of token_step; the latents from `length` on hold NaN, which nobody may read."""
    rng = np.random.default_rng(seed)
    defaults = {"hidden": 7, "heads": 2, "d_n": 3, "d_r": 4, "d_v": 5, "r": 6, "r_q": 4, "width": 5}
    sizes = defaults | {"experts": 4, "shared": 3, "biased": True, "layers": 3} | sizes
    weights = network(rng, dtype, **sizes)
    latents = np.full((sizes["layers"], batch, length + 3, sizes["r"] + sizes["d_r"]), np.nan, dtype)
    latents[:, :, :length] = rng.normal(size=latents[:, :, :length].shape)
    angles = rng.normal(size=(length + 1, sizes["d_r"] // 2))
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    ids, first = rng.integers(0, 11, batch), rng.integers(0, length + 1, batch)
    options = {"heads": sizes["heads"], "scale": 0.7, "eps": 1e-6, "latent_eps": 1e-6} | rules
    return (ids, weights, latents, length, first, cos, sin), options | {"interleaved": interleaved}


def run(function, arguments, options):
    """What a form of token_step returns, and the latents behind it."""
    ids, weights, latents, *rest = arguments
    latents = latents.copy()
    return [*function(ids, weights, latents, *rest, **options), latents]


def check_equal(arguments, options):
    """The twin gives what the reference gives, and writes one column."""
    dtype, length = arguments[2].dtype.name, arguments[3]
    given_ones = run(token_step.fused["cpu"], arguments, options)
    expected_ones = run(token_step.reference, arguments, options)
    for given_array, expected in zip(given_ones[:4], expected_ones[:4], strict=True):
        assert given_array.shape == expected.shape and given_array.dtype == expected.dtype
        largest = max(1.0, np.abs(expected).max(initial=0))
        assert np.abs(given_array - expected).max(initial=0) <= TOLERANCE[dtype] * largest
    latents, expected = (ones[4][:, :, : length + 1] for ones in (given_ones, expected_ones))
    largest = max(1.0, np.abs(expected).max(initial=0))
    assert np.abs(latents - expected).max(initial=0) <= TOLERANCE[dtype] * largest
    assert np.isnan(given_ones[4][:, :, length + 1 :]).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float64", "float32"]),
    batch=st.integers(0, 9),
    length=st.one_of(st.integers(0, 9), st.just(150)),
    sizes=st.fixed_dictionaries(
        {
            "hidden": st.integers(1, 9),
            "heads": st.integers(1, 9),
            "d_n": st.integers(1, 9),
            "d_r": st.sampled_from([2, 4, 12]),
            "d_v": st.integers(1, 9),
            "r": st.sampled_from([1, 5, 16, 35]),
            "r_q": st.sampled_from([None, 1, 6]),
            "width": st.integers(1, 9),
            "experts": st.integers(2, 5),
            "shared": st.integers(0, 7),
            "biased": st.booleans(),
            "layers": st.integers(1, 3),
        }
    ),
    interleaved=st.booleans(),
)
def test_the_twin_of_a_token_equals_its_reference(seed, dtype, batch, length, sizes, interleaved):
    check_equal(*case(seed, dtype, batch, length, interleaved, **sizes))


@pytest.mark.parametrize(
    ("scoring_func", "topk_method"),
    [(f, method) for f, fitting in TOPK_METHODS.items() for method in fitting],
)
def test_every_rule_of_a_router(scoring_func, topk_method):
    groups = {} if topk_method == "greedy" else {"n_group": 3, "topk_group": 2}
    rules = RULES | {"scoring_func": scoring_func, "topk_method": topk_method} | groups
    for norm in (False,) if scoring_func == "softmax" else (True, False):
        check_equal(*case(0, "float64", 5, 3, rules=rules | {"norm_topk_prob": norm}, experts=6))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float64", "float32"]))
def test_experts_are_those_of_the_primitives(seed, dtype):
    rng = np.random.default_rng(seed)
    block = case(seed, dtype, 1, 0)[0][1].blocks[1]
    x = rng.normal(size=(3, 7)).astype(dtype)
    y, weights, indices = moe_step(x, block, eps=1e-6, **RULES)

    x_hat = tg.rmsnorm(x, block.mlp_norm)
    chosen = tg.router_selection(tg.linear(x_hat, block.router), block.bias, **RULES)
    sent = tg.dispatch(x_hat, chosen.indices, num_experts=4)
    gate, up = tg.split(tg.grouped_linear(sent.rows, block.gate_up, sent.offsets), sections=2, axis=-1)
    rows = tg.grouped_linear(tg.swiglu(gate, up), block.down, sent.offsets)
    of_shared = tg.split(tg.linear(x_hat, block.shared_gate_up), 2, -1)
    by_primitives = tg.combine(rows, chosen.weights, sent.position) + tg.linear(
        tg.swiglu(*of_shared), block.shared_down
    )
    assert np.array_equal(chosen.indices.data, indices)
    np.testing.assert_allclose(chosen.weights.data, weights, rtol=2e-5)
    assert np.abs(by_primitives.data - y).max() <= TOLERANCE[dtype] * max(1.0, np.abs(y).max())


@pytest.mark.parametrize("batch", [1, 8])
def test_the_same_to_the_bit_with_a_helper_without_one_and_each_time(monkeypatch, batch):
    """What a helper takes over is decided by chance, call by call."""
    monkeypatch.setattr(decoding, "HELP_FROM", 0)
    if numba.get_num_threads() < 2:
        monkeypatch.setattr(numba, "get_num_threads", lambda: 2)  # the helper is a thread of our own
    arguments, options = case(3, "float32", batch, 200, hidden=64, heads=4, r=16, width=32, experts=8)
    with_helper = [run(token_step.fused["cpu"], arguments, options) for _ in range(40)]
    team = decoding._team(np.dtype("float32"))
    assert team._helper.is_alive()
    monkeypatch.setattr(team, "run", lambda work: work(*team.alone()))
    alone = run(token_step.fused["cpu"], arguments, options)
    for results in with_helper:
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(results, alone, strict=True))


def test_a_network_is_noted_anew_for_other_options_and_forgotten_with_its_weights():
    arguments, options = case(1, "float64", 2, 3)
    check_equal(arguments, options)
    check_equal(arguments, options | {"scale": 0.1})
    del arguments
    gc.collect()
    check_equal(*case(2, "float64", 2, 3))


def test_a_token_that_is_not_a_number_stays_one():
    arguments, options = case(1, "float32", 2, 3)
    arguments[1].embedding[arguments[0][0]] = np.nan
    y, logits, *_ = token_step.fused["cpu"](*arguments, **options)
    assert np.isnan(y[0]).all() and np.isnan(logits[0]).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float64", "float32"]),
    sizes=st.tuples(*[st.integers(0, 20) for _ in range(3)]),
)
def test_linear_twin_equals_its_reference(seed, dtype, sizes):
    batch, hidden, out = sizes
    rng = np.random.default_rng(seed)
    x, weight = (rng.normal(size=shape).astype(dtype) for shape in ((batch, hidden), (out, hidden)))
    twin, reference = linear_step.fused["cpu"](x, weight), linear_step.reference(x, weight)
    if twin is not NotImplemented:
        largest = max(1.0, np.abs(reference).max(initial=0))
        assert twin.dtype == dtype
        assert np.abs(twin - reference).max(initial=0) <= TOLERANCE[dtype] * largest


def test_twins_leave_what_they_do_not_cover_to_the_reference():
    x, weight = np.ones((2, 3), np.float16), np.ones((4, 3), np.float16)
    assert linear_step.fused["cpu"](x, weight) is NotImplemented
    assert linear_step(x, weight).shape == (2, 4)
    arguments, options = case(1, "float64", 2, 3)
    turned = arguments[2].swapaxes(0, 1).copy().swapaxes(0, 1)
    strided = (*arguments[:2], turned, *arguments[3:])
    assert token_step.fused["cpu"](*strided, **options) is NotImplemented
    assert token_step(*strided, **options).logits.shape == (2, 9)


@pytest.mark.parametrize("device", sorted(INFERENCE_TWINS))
def test_table_names_existing_functions(device):
    assert set(INFERENCE_TWINS[device]) <= set(inference_functions)
