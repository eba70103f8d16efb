"""Every CUDA kernel computes what the reference computes on NumPy arrays, forward and backward."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.cuda.arrays import on_device, same_on_device
from tests.tinygrad_ds.harness import STRATEGIES
from tests.tinygrad_ds.test_registry import cast, cotangents_for, outputs_of, strided
from tinygrad_ds import Fp8Recipe
from tinygrad_ds.kernels.table import TWINS
from tinygrad_ds.ops.experts import expert_order

pytestmark = pytest.mark.cuda
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
TWINS_THERE = sorted(TWINS["cuda"])


def compare(name, arrays, options, tolerance, arrays_there=None):
    """Run the twin on the device and the reference on the host; False where the twin leaves it to that."""
    primitive = tg.primitives[name]
    options_there = {option: on_device(value) for option, value in options.items()}
    there = on_device(arrays) if arrays_there is None else arrays_there
    answer = primitive.fused["cuda"].forward(*there, **options_there)
    if answer is NotImplemented:
        return False
    result, saved = primitive.forward(*arrays, **options)
    same_on_device(outputs_of(answer[0]), outputs_of(result), tolerance)
    g = cotangents_for(result)
    given_there = primitive.fused["cuda"].backward(answer[1], on_device(g))
    same_on_device(given_there, primitive.backward(saved, g), tolerance)
    return True


@pytest.mark.parametrize("name", TWINS_THERE)
@settings(max_examples=15)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_twin_on_the_device_equals_reference_on_the_host(name, data, dtype):
    case = data.draw(STRATEGIES[name])
    compare(name, cast(case, dtype), case.options, TOLERANCE[dtype])


@pytest.mark.parametrize("name", TWINS_THERE)
@settings(max_examples=5)
@given(data=st.data())
def test_layout_does_not_matter(name, data):
    """Strided arrays give the same numbers, and nothing that was passed in is changed."""
    case = data.draw(STRATEGIES[name])
    odd = on_device(tuple(strided(a) for a in case.arrays))
    odd = tuple(strided_there(a) for a in odd)
    compare(name, case.arrays, case.options, 1e-12, odd)
    same_on_device(odd, case.arrays, 0.0)


def strided_there(array):
    """The same numbers on the device in memory that is not contiguous."""
    import cupy

    wide = cupy.zeros((*array.shape, 2), dtype=array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def chosen(tokens, count, experts):
    """Different experts for each token, the lower ones far more often."""
    rng = np.random.default_rng(2)
    rows = [np.argsort(rng.random(experts) * np.arange(1, experts + 1) ** 2)[:count] for _ in range(tokens)]
    return np.array(rows)


def sent(tokens, count, experts):
    offsets, position = expert_order(chosen(tokens, count, experts), num_experts=experts)
    return position, offsets


# Larger than a block or a tile in every direction, and no multiple of one: cases of the registry are small.
LARGER = {
    "rmsnorm": [((numbers(11, 5, 70), numbers(70, seed=1)), {"eps": 1e-5})],
    "rope": [
        ((numbers(2, 9, 3, 42), numbers(9, 1, 21, seed=1), numbers(9, 1, 21, seed=2)), {"interleaved": True}),
        ((numbers(2, 9, 3, 42), numbers(2, 9, 1, 21, seed=1), numbers(2, 9, 1, 21)), {"interleaved": False}),
    ],
    "swiglu": [((numbers(7, 3, 50), numbers(7, 3, 50, seed=1)), {})],
    "attention": [
        ((numbers(2, 4, 37, 40), numbers(2, 2, 70, 40, seed=1), numbers(2, 2, 70, 36, seed=2)), {}),
        (
            (numbers(1, 2, 37, 33), numbers(1, 2, 37, 33, seed=1), numbers(1, 2, 37, 70, seed=2)),
            {"causal": False, "scale": 0.3, "first": np.arange(37)[None] // 20 * 20},
        ),
    ],
    "embedding": [((numbers(9, 150), np.random.default_rng(1).integers(0, 9, (4, 70))), {})],
    "cross_entropy": [((numbers(3, 5, 700), np.random.default_rng(1).integers(0, 700, (3, 5))), {})],
    "linear_cross_entropy": [
        ((numbers(3, 40, 9), numbers(700, 9), np.random.default_rng(1).integers(0, 700, (3, 40))), {})
    ],
    "router_selection": [
        (
            (numbers(9, 96), 0.1 * numbers(96, seed=1)),
            {"num_experts_per_tok": 7, "n_group": 8, "topk_group": 3, "routed_scaling_factor": 2.5},
        ),
        (
            (numbers(9, 96),),
            {
                "num_experts_per_tok": 40,
                "n_group": 4,
                "topk_group": 2,
                "scoring_func": "softmax",
                "topk_method": "group_limited_greedy",
                "norm_topk_prob": False,
            },
        ),
    ],
    "grouped_linear": [((numbers(150, 70), numbers(4, 90, 70, seed=1), np.array([0, 70, 70, 149, 150])), {})],
    "dispatch": [((numbers(150, 70), chosen(150, 3, 5)), {"num_experts": 5})],
    "combine": [
        ((numbers(450, 70), numbers(150, 3), np.random.default_rng(3).permutation(450).reshape(150, 3)), {})
    ],
    "experts_in": [((numbers(150, 70), numbers(5, 90, 70, seed=1), *sent(150, 3, 5)), {})],
    "experts_out": [
        ((numbers(450, 90), numbers(150, 3, seed=1), numbers(5, 70, 45, seed=2), *sent(150, 3, 5)), {})
    ],
    "fp8_experts_in": [
        ((numbers(150, 70), numbers(5, 96, 70, seed=1), *sent(150, 3, 5)), {"recipe": recipe})
        for recipe in (Fp8Recipe(side=32), Fp8Recipe(side=20, seed=5, gradient_format="e5m2"))
    ],
    "fp8_experts_out": [
        (
            (numbers(450, 90), numbers(150, 3, seed=1), numbers(5, 70, 45, seed=2), *sent(150, 3, 5)),
            {"recipe": recipe},
        )
        for recipe in (Fp8Recipe(), Fp8Recipe(side=16, seed=7, cache_format="e5m6", power_of_two=True))
    ],
    "fp8_swiglu_linear": [
        ((numbers(5, 30, 280), numbers(150, 140, seed=1)), {"recipe": Fp8Recipe(seed=3)}),
        ((numbers(90, 80), numbers(30, 40, seed=1)), {"recipe": Fp8Recipe(cache_format="e5m6", side=16)}),
    ],
    "fp8_linear": [
        (
            (numbers(5, 30, 140), numbers(150, 140, seed=1)),
            {"recipe": Fp8Recipe(seed=3, gradient_format="e5m2")},
        ),
        (
            (numbers(150, 40), numbers(30, 40, seed=1), numbers(30, seed=2)),
            {"recipe": Fp8Recipe(cache_format="e5m6", power_of_two=True, side=16)},
        ),
    ],
    "quantize": [
        ((100 * numbers(3, 200),), {"format": "e4m3", "tile": (1, 128)}),
        ((numbers(130, 140),), {"format": "e5m2", "tile": (128, 128), "power_of_two": True}),
        ((numbers(9, 150),), {"format": "e5m6", "tile": (128, 1), "seed": 7}),
    ],
    "softmax": [((numbers(5, 100),), {})],
    "log_softmax": [((numbers(5, 100),), {})],
}


@pytest.mark.parametrize("name", TWINS_THERE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_larger_than_a_block(name, dtype):
    for arrays, options in LARGER[name]:
        arrays = tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays)
        assert compare(name, arrays, options, TOLERANCE[dtype])
