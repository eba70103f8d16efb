"""Kernels on arrays of bfloat16: float32 inside, rounded once when a result is written."""

import cupy
import ml_dtypes
import numpy as np
import pytest

import tinygrad_ds as tg
from layers.precision import Bfloat16, precision, products
from tests.cuda.arrays import on_device
from tests.cuda.test_kernels import LARGER
from tests.tinygrad_ds.test_registry import cotangents_for, outputs_of
from tinygrad_ds.device import place, to_host

pytestmark = pytest.mark.cuda
NAMES = ("attention", "cross_entropy", "embedding", "log_softmax", "rmsnorm", "rope", "softmax", "swiglu")
KIND = np.dtype(ml_dtypes.bfloat16)


def narrow(arrays):
    """Those of real numbers rounded to bfloat16; and the same numbers in float32."""
    rounded = [a.astype(KIND) if a.dtype.kind == "f" else a for a in arrays]
    return rounded, [a.astype(np.float32) if a.dtype == KIND else a for a in rounded]


def close(there, expected):
    """To two roundings of the largest entry."""
    for a, b in zip(there, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == KIND and a.shape == b.shape
            here = to_host(a).astype(np.float32)
            np.testing.assert_allclose(here, b, rtol=0, atol=2**-7 * max(np.abs(b).max(), 1e-30))


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_float32_rounded(name):
    primitive = tg.primitives[name]
    for arrays, options in LARGER[name]:
        rounded, wide = narrow(arrays)
        answer = primitive.fused["cuda"].forward(*on_device(rounded), **on_device_options(options))
        assert answer is not NotImplemented
        result, saved = primitive.forward(*wide, **options)
        close(outputs_of(answer[0]), outputs_of(result))
        g = cotangents_for(result)
        (g_narrow,), (g_wide,) = narrow([g])
        grads = primitive.fused["cuda"].backward(answer[1], on_device(g_narrow))
        close(grads, primitive.backward(saved, g_wide))


def on_device_options(options):
    """Arrays among the options, on the device."""
    return {name: on_device(value) for name, value in options.items()}


def test_what_is_written_is_rounded_to_the_nearest_ties_to_even():
    """A product of two numbers of bfloat16 is exact in float32, so there is one right rounding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 256)).astype(KIND) * rng.choice([1e-30, 1.0, 1e30], (64, 256)).astype(KIND)
    x = x.astype(KIND)
    x[0, :6] = np.inf, -np.inf, 0.0, -0.0, 3e38, np.nan
    cos = rng.normal(size=128).astype(KIND)
    cos[:4] = 1.0078125, 3.0, 1.0, 2.0  # 1 + 2^-7: half of its products with odd numbers are ties
    with np.errstate(all="ignore"):
        a, b = x[:, ::2].astype(np.float32), cos.astype(np.float32)
        expected = (a * b - x[:, 1::2].astype(np.float32) * np.float32(0)).astype(KIND)
    y, _ = tg.rope.fused["cuda"].forward(*on_device([x, cos, np.zeros(128, KIND)]))
    np.testing.assert_array_equal(to_host(y)[:, ::2].astype(np.float32), expected.astype(np.float32))
    assert (expected != a * b).any()


def test_a_linear_multiplies_in_bfloat16_and_is_that_of_the_host():
    """Sums are in float32 on both sides: only where they are near a tie can a rounding differ."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 40, 50), (60, 50), (3, 40, 60))]
    found = {}
    for device in ("cpu", "cuda"):
        with tg.using(device=device), precision(Bfloat16()), tg.observe(Kept()) as kept:
            x, weight, g = (place(array) for array in arrays)
            x, weight = tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True)
            y = products().linear(x, weight)
            y.backward(g)
        assert y.dtype == x.grad.dtype == weight.grad.dtype == np.float32
        assert kept.kinds == {KIND if device == "cuda" else np.dtype(np.float32)}
        found[device] = [to_host(array) for array in (y.data, x.grad, weight.grad)]
    for here, there in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(there, there.astype(KIND).astype(np.float32))
        np.testing.assert_allclose(there, here, rtol=2**-7, atol=1e-6)
        assert np.mean(there == here) > 0.99


class Kept:
    """What linear multiplies."""

    def __init__(self):
        self.kinds = set()

    def forward(self, pair, arrays, result, saved, seconds):
        if pair.name == "linear":
            self.kinds |= {array.dtype for array in arrays}

    def backward(self, record, grads, given, seconds):
        pass


def test_a_kernel_that_does_not_know_bfloat16_leaves_it_to_the_reference():
    x = cupy.zeros((4, 8), KIND)
    assert tg.quantize.fused["cuda"].forward(x) is NotImplemented
