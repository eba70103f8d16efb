"""The functions of decoding: every twin equals its reference, and the references equal the primitives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tinygrad_ds.inference import inference_functions
from tinygrad_ds.kernels.table import INFERENCE_TWINS
from tinygrad_ds.ops.decoding import (
    LatentAttentionWeights,
    latent_attention_step,
    linear_step,
    mlp_step,
    moe_step,
)

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


def attention_case(rng, dtype, batch, heads, d_n, d_r, d_v, r, r_q, length, capacity):
    """Arguments of latent_attention_step; the latents from `length` on hold NaN, which nobody may read."""
    hidden = 7

    def draw(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(dtype)

    weights = LatentAttentionWeights(
        draw(r_q, hidden) if r_q else None,
        1 + draw(r_q) if r_q else None,
        draw(heads * (d_n + d_r), r_q or hidden),
        draw(r + d_r, hidden),
        1 + draw(r),
        draw(heads * (d_n + d_v), r),
        draw(hidden, heads * d_v),
    )
    latents = np.full((batch, capacity, r + d_r), np.nan, dtype)
    latents[:, :length] = draw(batch, length, r + d_r)
    first = rng.integers(0, length + 1, batch)
    angles = rng.normal(size=(batch, d_r // 2))
    return (
        draw(batch, hidden),
        1 + draw(hidden),
        weights,
        latents,
        length,
        first,
        np.cos(angles).astype(dtype),
        np.sin(angles).astype(dtype),
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float64", "float32"]),
    sizes=st.tuples(*[st.integers(1, 5) for _ in range(4)]),
    r_q=st.sampled_from([None, 1, 6]),
    length=st.integers(0, 9),
    interleaved=st.booleans(),
)
def test_attention_twin_equals_reference(seed, dtype, sizes, r_q, length, interleaved):
    batch, heads, d_n, r = sizes
    case = attention_case(
        np.random.default_rng(seed), dtype, batch, heads, d_n, 4, d_n + 1, r, r_q, length, length + 3
    )
    options = {"heads": heads, "scale": 0.7, "eps": 1e-6, "latent_eps": 1e-6, "interleaved": interleaved}
    results = []
    for run in (latent_attention_step.reference, latent_attention_step.fused["cpu"]):
        latents = case[3].copy()
        results.append((run(*case[:3], latents, *case[4:], **options), latents[:, : length + 1]))
        assert np.isnan(latents[:, length + 1 :]).all()
    for given_array, expected in zip(results[1], results[0], strict=True):
        assert given_array.dtype == dtype
        np.testing.assert_allclose(given_array, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float64", "float32"]),
    batch=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(2, 5), st.integers(1, 3)),
    shared=st.integers(0, 7),
    biased=st.booleans(),
)
def test_moe_twin_and_reference_equal_the_primitives(seed, dtype, batch, shape, shared, biased):
    hidden, width, experts, chosen = shape
    rng = np.random.default_rng(seed)

    def draw(*sizes):
        return rng.normal(size=sizes).astype(dtype)

    rules = {
        "num_experts_per_tok": min(chosen, experts),
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": None,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    }
    x, norm, router, bias = draw(batch, hidden), draw(hidden), draw(experts, hidden), draw(experts)
    gate_up, down = draw(experts, 2 * width, hidden), draw(experts, hidden, width)
    shared_gate_up, shared_down = draw(2 * shared, hidden), draw(hidden, shared)
    arguments = (x, norm, router, bias if biased else None, gate_up, down, shared_gate_up, shared_down)
    y, weights, indices = moe_step.reference(*arguments, eps=1e-6, **rules)

    x_hat = tg.rmsnorm(x, norm)
    chosen = tg.router_selection(tg.linear(x_hat, router), *([bias] if biased else []), **rules)
    sent = tg.dispatch(x_hat, chosen.indices, num_experts=experts)
    gate, up = tg.split(tg.grouped_linear(sent.rows, gate_up, sent.offsets), sections=2, axis=-1)
    rows = tg.grouped_linear(tg.swiglu(gate, up), down, sent.offsets)
    of_shared = tg.linear(tg.swiglu(*tg.split(tg.linear(x_hat, shared_gate_up), 2, -1)), shared_down)
    by_primitives = (tg.combine(rows, chosen.weights, sent.position) + of_shared).data
    twin = moe_step.fused["cpu"](*arguments, eps=1e-6, **rules)
    assert np.array_equal(twin[2], indices) and np.array_equal(chosen.indices.data, indices)
    np.testing.assert_allclose(twin[1], weights, rtol=TOLERANCE[dtype])
    for other in (by_primitives, twin[0]):
        assert other.dtype == dtype
        assert np.abs(other - y).max() <= TOLERANCE[dtype] * max(1.0, np.abs(y).max())


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float64", "float32"]),
    sizes=st.tuples(*[st.integers(1, 20) for _ in range(3)]),
)
def test_mlp_and_linear_twins_equal_their_references(seed, dtype, sizes):
    batch, hidden, width = sizes
    rng = np.random.default_rng(seed)
    shapes = ((batch, hidden), (hidden,), (2 * width, hidden), (hidden, width))
    x, norm, gate_up, down = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    for function, arguments, options in (
        (mlp_step, (x, norm, gate_up, down), {"eps": 1e-6}),
        (linear_step, (x, gate_up), {}),
    ):
        twin, reference = (
            function.fused["cpu"](*arguments, **options),
            function.reference(*arguments, **options),
        )
        if twin is not NotImplemented:
            largest = max(1.0, np.abs(reference).max())
            assert twin.dtype == dtype and np.abs(twin - reference).max() <= TOLERANCE[dtype] * largest


def test_twins_leave_what_they_do_not_cover_to_the_reference():
    x, weight = np.ones((2, 3), np.float16), np.ones((4, 3), np.float16)
    assert linear_step.fused["cpu"](x, weight) is NotImplemented
    assert linear_step(x, weight).shape == (2, 4)


@pytest.mark.parametrize("device", sorted(INFERENCE_TWINS))
def test_table_names_existing_functions(device):
    assert set(INFERENCE_TWINS[device]) <= set(inference_functions)
