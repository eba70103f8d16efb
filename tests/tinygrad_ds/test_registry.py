"""The registry walk: every primitive has cases, a derivation, right gradients, and twins that equal it."""

import importlib
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds import strategies
from tests.tinygrad_ds.harness import COMPOSITIONS, STRATEGIES
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.gradient_check import relative_errors

for _module in pkgutil.iter_modules(strategies.__path__):
    importlib.import_module(f"{strategies.__name__}.{_module.name}")

OURS = sorted(name for name, p in tg.primitives.items() if p.forward.__module__.startswith("tinygrad_ds."))
TWINS = [(name, device) for name in OURS for device in tg.primitives[name].fused if device == "cpu"]


def outputs_of(result):
    return result if isinstance(result, tuple) else (result,)


def cotangents_for(result, seed=0):
    rng = np.random.default_rng(seed)
    drawn = tuple(
        rng.normal(size=np.shape(y)).astype(y.dtype) if is_floating(np.asarray(y).dtype) else None
        for y in outputs_of(result)
    )
    return drawn if isinstance(result, tuple) else drawn[0]


def cast(case, dtype):
    return tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in case.arrays)


# Floating arguments that get no gradient by design: constants of the call.
WITHOUT_GRADIENT = {
    "rope": (1, 2),
    "router_selection": (1,),
    "grpo_objective": (1, 2, 4),
    "jensen_shannon": (1,),
}


def test_every_primitive_stands_in_the_face():
    assert set(OURS) <= set(tg.__all__)
    assert all(getattr(tg, name) is tg.primitives[name] for name in OURS)


def test_every_primitive_has_a_strategy():
    assert set(OURS) == set(STRATEGIES)


@pytest.mark.parametrize("name", OURS)
def test_every_primitive_has_a_derivation(name):
    primitive = tg.primitives[name]
    documented = [primitive.forward.__doc__]
    if primitive.weights:
        documented += [primitive.backward_input.__doc__, primitive.backward_weight.__doc__]
    else:
        documented += [primitive.backward.__doc__]
    assert all(text and len(text) > 10 for text in documented)


@pytest.mark.parametrize("name", OURS)
@given(data=st.data())
def test_gradient_equals_central_differences(name, data):
    case = data.draw(STRATEGIES[name])
    report = tg.gradcheck(tg.primitives[name], *case.arrays, **case.options)
    assert report.passed, report


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=10)
@given(data=st.data(), dtype=st.sampled_from(["float64", "float32"]))
def test_shapes_and_dtypes_are_kept(name, data, dtype):
    """Gradients have the shape and dtype of their arrays; a float32 call stays float32 throughout.

    Every floating array has one, every other array None.
    """
    primitive = tg.primitives[name]
    case = data.draw(STRATEGIES[name])
    arrays = cast(case, dtype)
    result, saved = primitive.forward(*arrays, **case.options)
    if "dtype" not in case.options:
        assert all(np.asarray(y).dtype in (dtype, np.int64, np.bool_) for y in outputs_of(result))
    given_grads = primitive.backward(saved, cotangents_for(result))
    assert len(given_grads) == len(arrays)
    for position, (array, grad) in enumerate(zip(arrays, given_grads, strict=True)):
        assert grad is None or (grad.shape, grad.dtype) == (array.shape, array.dtype)
        wanted = is_floating(array.dtype) and position not in WITHOUT_GRADIENT.get(name, ())
        assert wanted == (grad is not None)


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=10)
@given(data=st.data())
def test_gradients_have_the_dtype_of_their_own_arrays(name, data):
    """Where float32 meets float64 the result is wide, and the gradient of the narrow array is narrow."""
    primitive = tg.primitives[name]
    case = data.draw(STRATEGIES[name])
    for narrow, each in enumerate(case.arrays):
        if each.dtype.kind != "f":
            continue
        arrays = tuple(a.astype(np.float32) if i == narrow else a for i, a in enumerate(case.arrays))
        result, saved = primitive.forward(*arrays, **case.options)
        for array, grad in zip(arrays, primitive.backward(saved, cotangents_for(result)), strict=True):
            assert grad is None or grad.dtype == array.dtype


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=10)
@given(data=st.data())
def test_layout_and_write_protection_do_not_matter(name, data):
    """Strided and read-only arrays give the same numbers, and nothing that was passed in is changed."""
    primitive = tg.primitives[name]
    case = data.draw(STRATEGIES[name])
    result, saved = primitive.forward(*case.arrays, **case.options)
    cotangents = cotangents_for(result)
    expected = primitive.backward(saved, cotangents)
    odd = tuple(strided(a) for a in case.arrays)
    for array in odd:
        array.flags.writeable = False
    again, saved = primitive.forward(*odd, **case.options)
    same_arrays(outputs_of(again), outputs_of(result), 1e-12)
    same_arrays(primitive.backward(saved, cotangents), expected, 1e-12)
    same_arrays(odd, case.arrays, 0.0)


def strided(array):
    """The same numbers in memory that is not contiguous."""
    wide = np.zeros((*array.shape, 2), dtype=array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def same_arrays(given_arrays, expected, tolerance):
    for a, b in zip(given_arrays, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            a, b = np.asarray(a), np.asarray(b)
            assert a.shape == b.shape and a.dtype == b.dtype
            if is_floating(a.dtype):
                close(a, b, tolerance)
            else:
                assert np.array_equal(a, b)


def close(a, b, tolerance):
    """Equal to `tolerance`, relative to the largest entry; infinities and NaN in the same places."""
    finite = np.isfinite(b)
    assert np.array_equal(np.isfinite(a), finite) and np.array_equal(a[~finite], b[~finite], equal_nan=True)
    largest = np.abs(b[finite]).max(initial=0.0)
    assert np.abs(a[finite] - b[finite]).max(initial=0.0) <= tolerance * max(largest, 1e-30)


@pytest.mark.parametrize("name", sorted(COMPOSITIONS))
@settings(max_examples=20)
@given(data=st.data())
def test_coarse_equals_composed(name, data):
    """A coarse primitive and the same thing made of small ones agree, forward and backward."""
    case = data.draw(STRATEGIES[name])
    results = []
    for function in (tg.primitives[name], COMPOSITIONS[name]):
        with tg.using(kernels="reference"):
            tensors = [tg.Tensor(a, requires_grad=a.dtype.kind == "f") for a in case.arrays]
            result = function(*tensors, **case.options)
            floats = [y for y in outputs_of(result) if y.requires_grad]
            cotangents = [np.random.default_rng(i).normal(size=y.shape) for i, y in enumerate(floats)]
            total = sum((y * u).sum() for y, u in zip(floats, cotangents, strict=True))
            if floats:
                total.backward()
            results.append(([y.data for y in outputs_of(result)], [t.grad for t in tensors]))
    same_arrays(results[0][0], results[1][0], 1e-10)
    for coarse, composed in zip(results[0][1], results[1][1], strict=True):
        if coarse is None or composed is None:  # a gradient that never arrives is zero
            missing = composed if coarse is None else coarse
            assert missing is None or not missing.any()
        else:
            assert relative_errors(coarse, composed).max(initial=0.0) < 1e-8


@pytest.mark.parametrize(("name", "device"), TWINS)
@given(data=st.data())
def test_twin_equals_reference(name, device, data):
    """The fused pair computes what the reference computes: to 1e-12 in float64, to 2e-5 in float32."""
    primitive = tg.primitives[name]
    twin = primitive.fused[device]
    case = data.draw(STRATEGIES[name])
    for dtype, tolerance in (("float64", 1e-12), ("float32", 2e-5)):
        arrays = cast(case, dtype)
        answer = twin.forward(*arrays, **case.options)
        if answer is NotImplemented:
            continue
        result, saved = primitive.forward(*arrays, **case.options)
        same_arrays(outputs_of(answer[0]), outputs_of(result), tolerance)
        cotangents = cotangents_for(result)
        same_arrays(twin.backward(answer[1], cotangents), primitive.backward(saved, cotangents), tolerance)
