"""The three products in FP8, in both forms: which factor is rounded how, what is kept, what is exact."""

import numpy as np
import pytest

import tinygrad_ds as tg
from tinygrad_ds.formats import encode
from tinygrad_ds.ops.accumulation import multiply
from tinygrad_ds.ops.experts import expert_order
from tinygrad_ds.ops.fp8 import from_cache
from tinygrad_ds.tape import arrays_in

pytestmark = pytest.mark.usefixtures("kernels")


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def q(x, tile, **options):
    """Quantised and scaled back."""
    values, scales, _ = tg.quantize(x, tile=tile, **options)
    return tg.dequantize(values, scales, tile=tile).data


def run(x, weight, g, *rest, **options):
    """y, dL/dx and dL/dW."""
    x, weight = tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True)
    y = tg.fp8_linear(x, weight, *rest, recipe=tg.Fp8Recipe(**options))
    y.backward(g)
    return y.data, x.grad, weight.grad


def error(given, exact):
    return float(np.sqrt(((given - exact) ** 2).mean() / (exact**2).mean()))


def close(a, b):
    assert np.abs(a - b).max() <= 2e-6 * np.abs(b).max()


def test_the_three_products_are_those_of_quantised_factors():
    """Tiles lie along the axis that is summed over; x is re-tiled from what the cache kept."""
    x, weight, g = normal(300, 200), normal(150, 200, seed=1), normal(300, 150, seed=2)
    y, grad_x, grad_weight = run(x, weight, g)
    kept, factor = q(x, (1, 128)), q(weight, (128, 128))
    close(y, kept @ factor.T)
    close(grad_x, q(g, (1, 128)) @ factor)
    close(grad_weight, q(g, (128, 1)).T @ q(kept, (128, 1)))
    assert all(0.02 < e < 0.06 for e in (error(y, x @ weight.T), error(grad_weight, g.T @ x)))


def test_options_reach_the_factors_that_they_name():
    x, weight, g = normal(200, 130), normal(140, 130, seed=1), normal(200, 140, seed=2)
    y, grad_x, grad_weight = run(x, weight, g, gradient_format="e5m2", cache_format="e5m6", power_of_two=True)
    two = {"power_of_two": True}
    factor = q(weight, (128, 128), **two)
    close(y, q(x, (1, 128), **two) @ factor.T)
    close(grad_x, q(g, (1, 128), format="e5m2", **two) @ factor)
    again = q(q(x, (1, 128), format="e5m6", **two), (128, 1), **two)
    close(grad_weight, q(g, (128, 1), format="e5m2", **two).T @ again)
    y, grad_x, _ = run(x, weight, g, side=None)
    close(y, q(x, None) @ q(weight, None).T)
    close(grad_x, q(g, None) @ q(weight, None))


def test_scales_that_are_powers_of_two_make_re_tiling_exact():
    """But for what falls below the new tile's grid; other scales round a second time."""
    x = np.abs(normal(256, 256)) + np.float32(0.5)
    for power_of_two, exact in ((True, True), (False, False)):
        kept = q(x, (1, 128), power_of_two=power_of_two)
        assert np.array_equal(q(kept, (128, 1), power_of_two=power_of_two), kept) == exact


def test_the_bias_and_its_gradient_are_not_rounded():
    x, weight, bias, g = normal(9, 30), normal(20, 30, seed=1), normal(20, seed=2), normal(9, 20, seed=3)
    b = tg.Tensor(bias, requires_grad=True)
    y = tg.fp8_linear(x, weight, b)
    y.backward(g)
    close(y.data, tg.fp8_linear(x, weight).data + bias)
    close(b.grad, g.sum(axis=0))


def test_x_is_kept_as_codes_in_a_quarter_of_the_memory():
    x, weight = normal(512, 256), normal(128, 256, seed=1)
    pair = tg.fp8_linear.fused["cpu"] if tg.settings.current().kernels == "fused" else tg.fp8_linear
    saved = pair.forward(x, weight)[1]
    kept = [array for array in arrays_in(saved) if array is not weight]
    assert saved.weight is weight
    assert sum(array.nbytes for array in kept) == x.size + 4 * 512 * 2  # a byte each, and a scale for 128
    values, scales, _ = tg.quantize(x)
    assert np.array_equal(saved.x.codes, encode(values.data, "e4m3"))
    assert np.array_equal(saved.x.scales, scales.data)
    fine = pair.forward(x, weight, recipe=tg.Fp8Recipe(cache_format="e5m6"))[1]
    assert error(from_cache(fine.x, fine.recipe, np.float32), x) < 0.004


def test_stochastic_rounding_is_unbiased_and_repeats_with_its_seed():
    x, weight, g = normal(64, 128), normal(128, 128, seed=1), normal(64, 128, seed=2)
    first, again, other = (run(x, weight, g, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other):
        assert np.array_equal(a, b) and not np.array_equal(a, c)
    many = [run(x, weight, g, seed=seed) for seed in range(40)]
    for k, exact in enumerate((x @ weight.T, g @ weight, g.T @ x)):
        assert error(np.mean([one[k] for one in many], axis=0), exact) < 0.3 * error(first[k], exact)


def test_the_weight_half_can_wait():
    x, weight, g = normal(30, 20), normal(10, 20, seed=1), normal(30, 10, seed=2)
    expected = run(x, weight, g)
    x, weight = tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True)
    with tg.defer_weight_gradients() as later:
        tg.fp8_linear(x, weight).backward(g)
    assert np.array_equal(x.grad, expected[1]) and weight.grad is None and len(later) == 1
    later.run()
    assert np.array_equal(weight.grad, expected[2])


def test_nan_and_infinity_reach_their_row_alone():
    """NaN stays NaN; infinity is taken as the largest number of its tile, in both forms."""
    x, weight = normal(6, 200), normal(7, 200, seed=1)
    x[2, 3], x[4, 5] = np.nan, np.inf
    y = tg.fp8_linear(x, weight).data
    assert np.isnan(y[2]).all() and np.isfinite(np.delete(y, 2, axis=0)).all()
    clean = tg.fp8_linear(np.where(np.isfinite(x), x, 0), weight).data
    assert np.array_equal(y[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def test_options_that_are_none():
    weight = normal(3, 8)
    for options, message in (
        ({"format": "int8"}, "format is 'int8'"),
        ({"cache_format": "bf16"}, "format is 'bf16'"),
        ({"accumulation": "exact"}, "accumulation is 'exact', but it is 'float32' or 'tensor_core'"),
        ({"accumulation": "tensor_core", "promote_every": 40}, "promote_every is 40"),
    ):
        with pytest.raises(ValueError, match=message):
            tg.Fp8Recipe(**options)
    with pytest.raises(ValueError, match="the weight"):
        tg.fp8_linear(normal(4, 7), weight)


def test_sums_of_the_tensor_core_reach_all_three_products():
    x, weight, g = normal(64, 96), normal(32, 96, seed=1), normal(64, 32, seed=2)
    plain = run(x, weight, g)
    cut = run(x, weight, g, accumulation="tensor_core", promote_every=None)
    kept, factor = q(x, (1, 128)), q(weight, (128, 128))
    close(cut[0], multiply(kept, factor.T, "tensor_core", None))
    for a, b in zip(cut, plain):
        assert 1e-6 < error(a, b) < 1e-3


def routed(tokens, experts, chosen):
    rng = np.random.default_rng(3)
    picks = np.array([np.sort(rng.permutation(experts)[:chosen]) for _ in range(tokens)])
    offsets, position = expert_order(picks, num_experts=experts)
    return picks, offsets, position


def test_experts_are_fp8_linears_of_their_rows():
    """One expert's rows through fp8_linear give its part of everything."""
    picks, offsets, position = routed(60, 4, 2)
    x, weight = tg.Tensor(normal(60, 140), requires_grad=True), normal(4, 30, 140, seed=1)
    stacked = tg.Tensor(weight, requires_grad=True)
    y = tg.fp8_experts_in(x, stacked, position, offsets)
    g = normal(*y.shape, seed=2)
    y.backward(g)
    grad_x = np.zeros((60, 140), np.float32)
    for e in range(4):
        tokens = np.flatnonzero((picks == e).any(axis=1))
        rows = slice(offsets[e], offsets[e + 1])
        of_expert, of_x, of_weight = run(x.data[tokens], weight[e], g[rows])
        close(y.data[rows], of_expert)
        close(stacked.grad[e], of_weight)
        grad_x[tokens] += of_x
    close(x.grad, grad_x)


def test_out_of_the_experts_is_a_swiglu_linear_of_their_rows():
    picks, offsets, position = routed(50, 3, 2)
    gate_up, weights = normal(100, 80), np.abs(normal(50, 2, seed=4)) + np.float32(0.1)
    weight, g = normal(3, 20, 40, seed=1), normal(50, 20, seed=2)
    leaves = [tg.Tensor(array, requires_grad=True) for array in (gate_up, weights, weight)]
    y = tg.fp8_experts_out(*leaves, position, offsets)
    y.backward(g)
    total = np.zeros((50, 20), np.float32)
    for e in range(3):
        tokens, k = np.nonzero(picks == e)
        rows, w = slice(offsets[e], offsets[e + 1]), weights[tokens, k][:, None]
        of_rows, of_weight = (tg.Tensor(a, requires_grad=True) for a in (gate_up[rows], weight[e]))
        of_expert = tg.fp8_swiglu_linear(of_rows, of_weight)
        of_expert.backward(w * g[tokens])
        total[tokens] += w * of_expert.data
        close(leaves[2].grad[e], of_weight.grad)
        assert error(leaves[0].grad[rows], of_rows.grad) < 0.01  # w before Q here, behind it there
    close(y.data, total)


def test_nothing_of_the_hidden_layer_is_kept():
    gate_up, weight = normal(256, 256), normal(64, 128, seed=1)
    pair = tg.fp8_swiglu_linear.fused["cpu"]
    saved = pair.forward(gate_up, weight)[1]
    kept = sum(array.nbytes for array in arrays_in(saved) if array is not weight)
    assert kept == gate_up.size + 4 * 256 * 2
    exact = tg.linear(tg.swiglu(gate_up[:, :128], gate_up[:, 128:]), weight).data
    assert 0.02 < error(tg.fp8_swiglu_linear(gate_up, weight).data, exact) < 0.05
