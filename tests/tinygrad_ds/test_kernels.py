"""What every fused kernel must keep to, beside equalling its reference (which the registry walk checks)."""

import importlib
import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

import tinygrad_ds as tg
from tests.tinygrad_ds.test_registry import close, same_arrays
from tinygrad_ds.kernels.cpu import optimizer
from tinygrad_ds.kernels.cpu.arithmetic import exp, largest
from tinygrad_ds.kernels.cpu.common import Kernel
from tinygrad_ds.kernels.cpu.layout import contiguous
from tinygrad_ds.kernels.table import TWINS

ROWS, WIDTH = 350, 257  # odd, and some for every part


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(dtype)


def calls(rows, width, dtype=np.float32):
    """One call of every twin in this folder's own modules: name -> (arrays, options)."""
    x, angles = normal(rows, width, dtype=dtype), normal(rows, width // 2, dtype=dtype)
    targets = np.random.default_rng(1).integers(-1, width, size=rows)
    return {
        "rmsnorm": ((x, normal(width, dtype=dtype)), {}),
        "rope": ((normal(rows, width // 2 * 2, dtype=dtype), np.cos(angles), np.sin(angles)), {}),
        "softmax": ((x,), {}),
        "log_softmax": ((x,), {}),
        "swiglu": ((x, normal(rows, width, dtype=dtype, seed=1)), {}),
        "fp8_linear": ((x, normal(width, width, dtype=dtype)), {}),
        "cross_entropy": ((x, targets), {"ignore_index": -1}),
        "linear_cross_entropy": ((x, normal(width, width, dtype=dtype), targets), {"ignore_index": -1}),
        "embedding": ((x, np.abs(targets).repeat(3) % rows), {}),
    }


NAMES = sorted(calls(1, 3))


def run(pair, arrays, options):
    """Outputs and gradients of one call, forward and backward."""
    y, saved = pair.forward(*arrays, **options)
    return np.asarray(y), *pair.backward(saved, normal(*np.shape(y), dtype=np.asarray(y).dtype, seed=2))


def bits(arrays):
    return [None if array is None else array.tobytes() for array in arrays]


def kernels():
    """Every kernel of the modules that the table names, and of the optimizer."""
    families = set(TWINS["cpu"].values())
    modules = [importlib.import_module(f"tinygrad_ds.kernels.cpu.{family}") for family in families]
    found = [value for module in [*modules, optimizer] for value in vars(module).values()]
    return sorted((k for k in found if isinstance(k, Kernel)), key=lambda k: k.function.__qualname__)


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of numba's threads, and sets it back. All kernels use all threads, for any call."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba was started for one thread, so there are no two to compare with")
    for kernel in kernels():
        monkeypatch.setattr(kernel, "parallel_from", 0)
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_change_a_bit(name, threads):
    """One thread, two, and two again; and what they compute is what the reference does."""
    arrays, options = calls(ROWS, WIDTH)[name]
    twin, results = tg.primitives[name].fused["cpu"], []
    for count in (1, 2, 2):
        threads(count)
        results.append(run(twin, arrays, options))
    assert bits(results[0]) == bits(results[1]) == bits(results[2])
    same_arrays(results[0], run(tg.primitives[name], arrays, options), 2e-5)


def test_threads_may_call_kernels_at_the_same_time(threads):
    threads(2)
    arrays, options = calls(ROWS, WIDTH)["softmax"]
    twin = tg.primitives["softmax"].fused["cpu"]
    expected = bits(run(twin, arrays, options))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run, twin, arrays, options) for _ in range(16)]
        assert all(bits(job.result()) == expected for job in jobs)


ODD = [np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, -0.0]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "embedding"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinities_pass_through_as_in_the_reference(name, dtype):
    """An odd number in each row spoils what it spoils in the reference, and nothing else."""
    arrays, options = calls(len(ODD), 19, dtype)[name]
    for position, array in enumerate(arrays):
        if array.shape[:1] != (len(ODD),) or array.dtype != dtype:
            continue
        spoilt = array.copy()
        spoilt[range(len(ODD)), range(len(ODD))] = ODD
        odd = [*arrays[:position], spoilt, *arrays[position + 1 :]]
        with np.errstate(all="ignore"):
            given = run(tg.primitives[name].fused["cpu"], odd, options)
            expected = run(tg.primitives[name], odd, options)
        for a, b in zip(given, expected):
            if a is not None:
                close(a, b, 2e-5)


def unaligned(array):
    """The same numbers, one byte off."""
    moved = np.ndarray(array.shape, array.dtype, np.zeros(array.nbytes + 1, np.uint8), offset=1)
    moved[...] = array
    return moved


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [unaligned, strided, read_only, np.asfortranarray])
def test_layout_does_not_change_a_bit(name, layout):
    arrays, options = calls(5, 7)[name]
    twin = tg.primitives[name].fused["cpu"]
    plain, odd = run(twin, arrays, options), run(twin, [layout(array) for array in arrays], options)
    assert bits(plain) == bits(odd)


def test_contiguous_copies_only_what_it_must():
    array = normal(3, 4)
    assert contiguous(array) is array
    for odd in (unaligned(array), strided(array), read_only(array), array.T.copy().T):
        copy = contiguous(odd)
        assert copy.flags.carray and np.array_equal(copy, array) and not np.shares_memory(copy, odd)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_twin_does_not_cover_is_left_to_the_reference(name):
    arrays, options = calls(5, 7)[name]
    half = [array.astype(np.float16) if array.dtype.kind == "f" else array for array in arrays]
    assert tg.primitives[name].fused["cpu"].forward(*half, **options) is NotImplemented
    y = tg.primitives[name](*half, **options)
    assert y.dtype == np.float16


def test_the_table_names_only_twins_that_exist():
    """Each with the reference's signature, and a backward, in two halves where the reference has two."""
    for name in TWINS["cpu"]:
        primitive, twin = tg.primitives[name], tg.primitives[name].fused["cpu"]
        assert inspect.signature(twin.forward) == inspect.signature(primitive.forward)
        halves = ["backward_input", "backward_weight"] if primitive.weights else ["backward"]
        assert all(callable(getattr(twin, half)) for half in halves)


def test_importing_the_package_imports_no_compiler():
    code = "import sys, tinygrad_ds; print([m for m in ('numba', 'llvmlite', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_call_says_that_it_compiles_and_the_next_process_need_not(tmp_path):
    code = """
import numpy as np, tinygrad_ds as tg
from tinygrad_ds.kernels import progress
progress.listener = print
for _ in range(2):
    tg.rmsnorm(np.ones((2, 3), np.float32), np.ones(3, np.float32))
"""
    command, where = [sys.executable, "-c", code], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(command, env=where, capture_output=True, text=True, check=True).stdout for _ in "12"
    )
    assert first == "compiling rmsnorm (float32) ...\n" and second == ""


@pytest.mark.parametrize("kernel", kernels(), ids=lambda k: k.function.__name__)
def test_no_float64_arithmetic_in_float32_kernels(kernel):
    """Numba's types of all variables and intermediate results, compiled for float32."""
    compiled = numba.njit(f"void{kernel.signature.replace('T', 'float32')}")(kernel.function)
    (overload,) = compiled.overloads.values()
    assert numba.float64 not in overload.type_annotation.typemap.values()


@numba.njit
def _exp_and_largest(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])
    return largest(x)


@pytest.mark.parametrize(("dtype", "low"), [(np.float32, -86), (np.float64, -700)])
def test_exp_is_right_to_one_unit_in_the_last_place(dtype, low):
    x = np.concatenate([np.linspace(low, 80, 20001), normal(20000) * 1e-3]).astype(dtype)
    y = np.empty_like(x)
    assert _exp_and_largest(x, y) == 80
    exact = np.exp(x.astype(np.longdouble))
    assert (np.abs(y - exact) <= 1.0 * np.spacing(exact.astype(dtype))).all()
    ends = np.array([0, -0.0, -1e4, -np.inf, np.nan, -np.nan], dtype=dtype)
    _exp_and_largest(ends, y)
    assert np.array_equal(y[:6], np.array([1, 1, 0, 0, np.nan, np.nan], dtype=dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_is_the_largest(dtype):
    for x in (
        [-2, -3.5, -1e-40],
        [-np.inf, -1, -np.inf],
        [0, np.inf, 3],
        [-np.inf, -np.inf],
        [-0.0, -1],
        [5],
    ):
        x = np.array(x, dtype=dtype)
        assert _exp_and_largest(x, np.empty_like(x)) == x.max()


RATES = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 1e-6)])
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (3, 5), (1,), (0, 4), ()])
def test_adamw_step_is_the_formula(dtype, tolerance, shape):
    p, g, m = (np.asarray(normal(*shape, seed=seed), dtype) for seed in range(3))
    v = np.asarray(normal(*shape, seed=3) ** 2, dtype)
    c1, c2, scale = 1 - 0.9**3, 1 - 0.95**3, 0.25
    g_64, m_64, v_64, p_64 = (array.astype(np.float64) for array in (g * dtype(scale), m, v, p))
    m_64 = 0.9 * m_64 + 0.1 * g_64
    v_64 = 0.95 * v_64 + 0.05 * g_64**2
    p_64 = p_64 - 1e-2 * 0.1 * p_64 - 1e-2 * (m_64 / c1) / (np.sqrt(v_64 / c2) + 1e-3)
    before = g.copy()
    optimizer.adamw_step(p, g, m, v, **RATES, correction1=c1, correction2=c2, scale=scale)
    assert np.array_equal(g, before)
    for given, expected in ((p, p_64), (m, m_64), (v, v_64)):
        close(given, expected.astype(dtype), tolerance)


def test_adamw_step_names_the_array_that_is_wrong():
    x, rest = normal(3, 4), {**RATES, "correction1": 1.0, "correction2": 1.0}
    with pytest.raises(ValueError, match=r"m is float64\(3, 4\) but the parameter float32\(3, 4\)"):
        optimizer.adamw_step(x, x, x.astype(np.float64), x, **rest)
    with pytest.raises(ValueError, match=r"grad is float32\(4,\) but the parameter float32\(3, 4\)"):
        optimizer.adamw_step(x, x[0], x, x, **rest)
    with pytest.raises(ValueError, match="v is strided or read-only"):
        optimizer.adamw_step(x, x, x, strided(x), **rest)


def test_sum_of_squares_and_adamw_do_not_depend_on_threads(threads):
    results = []
    for count in (1, 2):
        threads(count)
        p, g, m, v = (normal(ROWS, WIDTH, seed=seed) for seed in range(4))
        optimizer.adamw_step(p, g, m, v * v, **RATES, correction1=1.0, correction2=1.0)
        results.append((bits((p, m)), optimizer.sum_of_squares(g)))
    assert results[0] == results[1]


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (4097,), (3, 5), (0,), ()])
def test_sum_of_squares(shape):
    """In float32 too it is good to 1e-6 of itself: blocks are short, and their sums are added in float64."""
    x = np.asarray(normal(*shape))
    assert optimizer.sum_of_squares(x) == pytest.approx(float(np.square(x, dtype=np.float64).sum()), rel=1e-6)
    x = x.astype(np.float64)
    assert optimizer.sum_of_squares(x) == pytest.approx(float((x * x).sum()), rel=1e-13)
