"""The optimizer's kernels over many leaves at once against the formulas on the host."""

import cupy
import ml_dtypes
import numpy as np
import pytest

import tinygrad_ds as tg
from tinygrad_ds.device import to_host
from tinygrad_ds.kernels.cuda import optimizer
from train.optimizer import adamw_update

pytestmark = pytest.mark.cuda
# One longer than a piece, one that is no multiple of anything.
SIZES = (optimizer.PIECE + 301, 7, 1000)
RULES = {"t": 3, "lr": 0.02, "betas": (0.9, 0.95), "decay": 0.1, "eps": 1e-8}


def leaves(dtype, seed=0):
    """(parameter, gradient, m, v) for every leaf, on the host; v is not negative."""
    rng = np.random.default_rng(seed)
    rows = [[rng.normal(size=size) for _ in range(4)] for size in SIZES]
    return [tuple(a.astype(dtype) for a in (p, g, m, np.abs(v))) for p, g, m, v in rows]


def there(rows):
    """Each array at the start of its own memory on the device."""
    return [tuple(cupy.asarray(a) for a in row) for row in rows]


def compare_with_the_host(dtype="float64", tolerance=1e-12):
    """A step that clips, and one that is not finite. Raises AssertionError where they differ."""
    rows = leaves(dtype)
    on_device, decays = there(rows), [True, False, True]
    table = optimizer.Tables().of(on_device, decays)
    norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for _, g, _, _ in rows))
    watched = cupy.asarray([0.5])
    control = optimizer.decide(table, norm / 4, watched)
    np.testing.assert_allclose(
        to_host(control), [norm, 0.25, 1.0], rtol=1e-6 if dtype == "float32" else 1e-12
    )
    optimizer.adamw(table, control, **RULES)
    expected = []
    for (p, g, m, v), decay in zip(rows, decays, strict=True):
        p, g, m, v = p.copy(), g / 4, m.copy(), v.copy()
        with tg.using(kernels="reference"):
            adamw_update(p, g, m, v, **{**RULES, "decay": 0.1 if decay else 0.0})
        expected.append((p, g, m, v))
    for given, wanted in zip(on_device, expected, strict=True):
        for a, b in zip(given, wanted, strict=True):
            np.testing.assert_allclose(to_host(a), b, rtol=0, atol=tolerance * np.abs(b).max())
    before = [[to_host(a) for a in row] for row in on_device]
    optimizer.adamw(table, optimizer.decide(table, 1.0, cupy.asarray([np.nan])), **RULES)
    for given, wanted in zip(on_device, before, strict=True):
        for a, b in zip(given, wanted, strict=True):
            np.testing.assert_array_equal(to_host(a), b)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_step_over_all_leaves_equals_the_formulas(dtype, tolerance):
    compare_with_the_host(dtype, tolerance)


def test_moments_of_bfloat16_are_widened_moved_and_rounded_again():
    rows, kind = leaves("float32"), np.dtype(ml_dtypes.bfloat16)
    rows = [(p, g, m.astype(kind), v.astype(kind)) for p, g, m, v in rows]
    on_device = there(rows)
    assert optimizer.covers(
        [a for row in on_device for a in row[:2]], [a for row in on_device for a in row[2:]]
    )
    optimizer.adamw(optimizer.Tables().of(on_device), None, moments=kind, **{**RULES, "decay": 0.0})
    for (p, g, m, v), given in zip(rows, on_device, strict=True):
        with tg.using(kernels="reference"):
            adamw_update(p, g, m, v, **{**RULES, "decay": 0.0})
        np.testing.assert_allclose(to_host(given[0]), p, rtol=0, atol=2e-6 * np.abs(p).max())
        for moment, expected in zip(given[2:], (m, v), strict=True):
            here, there_ = expected.astype(np.float32), to_host(moment).astype(np.float32)
            np.testing.assert_allclose(there_, here, rtol=2**-7, atol=0)
            assert np.mean(here == there_) > 0.999


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_never_applied(spoilt):
    rows = leaves("float32")
    rows[1][1][3] = spoilt
    on_device = there(rows)
    table = optimizer.Tables().of(on_device)
    control = optimizer.decide(table, 1.0)
    assert to_host(control)[2] == 0
    optimizer.clip(table, control)
    assert all(not to_host(row[1]).any() for row in on_device)
    optimizer.adamw(table, control, **RULES)
    for given, wanted in zip(on_device, rows, strict=True):
        np.testing.assert_array_equal(to_host(given[0]), wanted[0])


def test_below_the_limit_nothing_is_scaled():
    rows = leaves("float32")
    on_device = there(rows)
    table = optimizer.Tables().of(on_device)
    control = optimizer.decide(table, 1e9)
    optimizer.clip(table, control)
    assert to_host(control)[1] == 1
    for given, wanted in zip(on_device, rows, strict=True):
        np.testing.assert_array_equal(to_host(given[1]), wanted[1])


def test_a_table_is_made_again_only_where_an_array_has_moved():
    tables, rows = optimizer.Tables(), there(leaves("float32"))
    first = tables.of(rows)
    assert tables.of(rows) is first
    rows[1] = tuple(a.copy() for a in rows[1])
    assert tables.of(rows) is not first
