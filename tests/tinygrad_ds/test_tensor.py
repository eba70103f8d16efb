"""Tensor: operators and methods mean what they mean in NumPy, and numbers do not promote."""

import operator
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import broadcast_pair, reals, shapes
from tests.tinygrad_ds.strategies.reduction import axes_of

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]
IN_PLACE = [operator.iadd, operator.isub, operator.imul, operator.itruediv]


@pytest.mark.parametrize("operation", [*ARITHMETIC, operator.pow])
@given(data=st.data())
def test_operators_are_numpys(operation, data):
    """With a tensor on either side or on both, and an array, a number or a NumPy number on the other."""
    first, second = data.draw(broadcast_pair())
    a, b = data.draw(reals(first, low=0.5)), data.draw(reals(second, low=0.5))
    number = data.draw(st.sampled_from((2, 0.5, np.float64(0.5), np.int64(3), np.float32(2))))
    t = tg.Tensor(a)
    for result, expected in [
        (operation(t, tg.Tensor(b)), operation(a, b)),
        (operation(t, b), operation(a, b)),
        (operation(b, t), operation(b, a)),
        (operation(t, number), operation(a, number)),
        (operation(number, t), operation(number, a)),
        (operation(t, [2.0]), operation(a, [2.0])),
    ]:
        assert type(result) is tg.Tensor and type(result.data) is np.ndarray
        assert result.dtype == np.float64
        np.testing.assert_allclose(result.data, expected, rtol=1e-15)


@pytest.mark.parametrize("operation", IN_PLACE)
@given(data=st.data())
def test_operators_in_place_are_numpys(operation, data):
    shape = data.draw(shapes())
    a, b = data.draw(reals(shape)), data.draw(reals(shape, low=0.5))
    t = before = tg.Tensor(a.copy())
    t = operation(t, tg.Tensor(b))
    t = operation(t, 2)
    assert t is before and np.array_equal(t.data, operation(operation(a, b), 2))


@given(data=st.data())
def test_methods_are_numpys(data):
    shape = data.draw(shapes(min_side=1))
    x = data.draw(reals(shape))
    t, axis, keepdims = tg.Tensor(x), data.draw(axes_of(len(shape))), data.draw(st.booleans())
    for name in ("sum", "mean", "max", "min", "var"):
        ours, numpys = getattr(t, name), getattr(x, name)
        np.testing.assert_allclose(
            ours(axis, keepdims=keepdims).data, numpys(axis, keepdims=keepdims), atol=1e-13
        )
        np.testing.assert_allclose(ours().data, numpys(), atol=1e-13)
    np.testing.assert_allclose(t.var(ddof=-1).data, x.var(ddof=-1))
    order = data.draw(st.permutations(range(x.ndim)))
    for result, expected in [
        (-t, -x),
        (abs(t), abs(x)),
        (t.T, x.T),
        (t.transpose(), x.transpose()),
        (t.transpose(None), x.transpose(None)),
        (t.transpose(order), x.transpose(order)),
        (t.transpose(*order), x.transpose(*order)),
        (t.reshape(-1), x.reshape(-1)),
        (t.reshape(x.shape[::-1]), x.reshape(x.shape[::-1])),
        (t.reshape(x.size, 1), x.reshape(x.size, 1)),
        (t.reshape(np.int64(x.size)), x.reshape(x.size)),
        (t.astype("float32"), x.astype("float32")),
        (t[...], x[...]),
    ]:
        assert np.array_equal(result.data, expected) and result.dtype == expected.dtype
    if x.ndim:
        first, second = (data.draw(st.integers(-x.ndim, x.ndim - 1)) for _ in range(2))
        assert np.array_equal(t.swapaxes(first, second).data, x.swapaxes(first, second))


def test_products_from_either_side():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    for product in (tg.Tensor(a) @ tg.Tensor(b), tg.Tensor(a) @ b, a @ tg.Tensor(b)):
        assert type(product) is tg.Tensor and np.array_equal(product.data, a @ b)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_numbers_do_not_promote(dtype):
    x = tg.Tensor(np.ones((2, 2))).astype(dtype)
    for number in (2, 0.5, True, np.float64(0.5), 3.5e-3):
        for operation in ARITHMETIC:
            assert operation(x, number).dtype == operation(number, x).dtype == x.dtype
    assert (
        (x**2).dtype
        == (2**x).dtype
        == tg.maximum(x, 0).dtype
        == tg.where(x.data > 0, x, 0.0).dtype
        == x.dtype
    )
    assert (tg.Tensor([1, 2]) + 1).dtype == np.int64 and (tg.Tensor([1, 2]) * 0.5).dtype == np.float64


def test_float32_stays_float32_with_arrays_from_the_left():
    x = tg.Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    ones = np.ones((2, 2), np.float32)
    y = ones * x + ones @ x - ones / (x + 1) + np.float64(2) * x + np.float32(1)
    y.mean().backward()
    assert type(y) is tg.Tensor and y.dtype == x.grad.dtype == np.float32


def test_float64_arrays_promote_as_in_numpy():
    x = tg.Tensor(np.ones(2, np.float32), requires_grad=True)
    y = np.ones(2) * x
    y.sum().backward()
    assert y.dtype == np.float64 and x.grad.dtype == np.float32


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_narrow_formats_store(narrow):
    """A parameter kept narrow, used in float32: its gradient is as narrow as it is."""
    kept = tg.Tensor(np.arange(4.0).astype(np.float32)).astype(narrow)
    w = tg.Tensor(kept, requires_grad=True)
    (w.astype("float32") ** 2).sum().backward()
    assert w.grad.dtype == w.dtype == (ml_dtypes.bfloat16 if narrow == "bfloat16" else np.float16)
    assert w.grad.astype(float).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_narrow_formats_pass_through_every_simple_primitive(narrow):
    """Results and gradients of a narrow array are as narrow: nothing promotes on the way."""
    x = np.array([1.0, 2.0, 3.0]).astype(tg.Tensor(1.0).astype(narrow).dtype)
    options = {"cumsum": {"axis": 0}, "clip": {"low": 1.5}, "astype": {"dtype": narrow}}
    for name, primitive in tg.primitives.items():
        family = primitive.forward.__module__.rpartition(".")[2]
        if family in ("elementwise", "activation", "reduction"):
            arrays = [x] * primitive.arrays if name != "where" else [x > 1, x, x]
            y, saved = primitive.forward(*arrays, **options.get(name, {}))
            grads = [g for g in primitive.backward(saved, np.ones_like(y)) if g is not None]
            assert grads and {y.dtype, *(g.dtype for g in grads)} == {x.dtype}, name


def test_results_are_arrays_where_numpy_has_scalars():
    x = tg.Tensor(2.0, requires_grad=True)
    v = tg.Tensor([1.0, 2.0], requires_grad=True)
    for y in (
        x * x,
        x + 1,
        -x,
        tg.exp(x),
        x**2,
        v.sum(),
        v.max(),
        v[0],
        v @ v,
        tg.logsumexp(v),
        x.reshape(()),
    ):
        assert type(y.data) is np.ndarray and y.data.shape == ()
        x.grad = v.grad = None
        y.backward(keep_saved=True)
        y.backward()
        assert all(type(t.grad) is np.ndarray for t in (x, v) if t.grad is not None)


def test_what_it_says_of_itself():
    x = tg.Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float32, 2)
    assert "float32, requires_grad=True" in repr(x) and "requires_grad" not in repr(x.detach())
    number = tg.Tensor(3.5)
    assert (float(number), int(number), bool(number), number.item()) == (3.5, 3, True, 3.5)
    with pytest.raises(TypeError, match="0-d tensor has no length"):
        len(number)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)


def test_iterates_over_its_rows():
    x = tg.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    first, second = x
    (first + 2 * second).sum().backward()
    assert x.grad.tolist() == [[1, 1, 1], [2, 2, 2]]
    with pytest.raises(TypeError, match="0-d"):
        iter(tg.Tensor(1.0))


def test_memory_is_shared_with_what_it_was_made_of():
    array = np.ones(3)
    x = tg.Tensor(array)
    assert x.data is array and x.numpy() is array and x.detach().data is array
    assert tg.Tensor([1, 2]).dtype == np.int64 and tg.Tensor(1.5).shape == ()


# Settings


def test_no_grad_ends_with_its_block():
    x = tg.Tensor([1.0], requires_grad=True)
    with tg.no_grad():
        assert not (x * 2).requires_grad
        with pytest.raises(ZeroDivisionError), tg.no_grad():
            raise ZeroDivisionError
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


@pytest.mark.parametrize("name", ["kernels", "device"])
def test_settings_that_there_are_not(name):
    with (
        pytest.raises(ValueError, match=f"{name} is 'quick' but must be one of"),
        tg.using(**{name: "quick"}),
    ):
        pass


def test_threads_have_settings_of_their_own():
    """no_grad in one thread does not stop another one from recording, and each has its gradients right."""
    started, wait = threading.Barrier(2), threading.Barrier(2)
    found = {}

    def without():
        with tg.no_grad():
            started.wait()
            found["without"] = (tg.Tensor([1.0], requires_grad=True) * 2).requires_grad
            wait.wait()

    def recording():
        started.wait()
        x = tg.Tensor([1.0, 2.0], requires_grad=True)
        y = x
        for _ in range(50):
            y = y * 1.0 + 0 * x
        y.sum().backward()
        found["with"] = x.grad.tolist()
        wait.wait()

    threads = [threading.Thread(target=f) for f in (without, recording)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"without": False, "with": [1, 1]}


def test_without_cupy_cuda_says_what_to_install():
    try:
        import cupy  # noqa: F401
    except ImportError:
        with tg.using(device="cuda"), pytest.raises(RuntimeError, match=r"pip install .*cuda12"):
            tg.Tensor([1.0])
