"""Muon's kernels over all matrices at once against the formulas on the host."""

import cupy
import numpy as np
import pytest

from tests.cuda.test_optimizer import there
from tinygrad_ds.device import to_host
from tinygrad_ds.kernels.cuda import muon, optimizer
from train.muon import COEFFICIENTS, ITERATIONS, orthogonalize

pytestmark = pytest.mark.cuda
# Wide, tall, square, and longer than a piece.
SHAPES = ((3, 5, 7), (2, 9, 4), (1, 6, 6), (1, 270, 250))
RULES = {"lr": 0.03, "momentum": 0.9, "keep": 0.99}


def matrices(dtype):
    """For each shape the momentum and, for each of its matrices, parameter and gradient, on the host."""
    rng = np.random.default_rng(0)
    stacks = [[rng.normal(size=shape).astype(dtype) for _ in range(3)] for shape in SHAPES]
    return [(m, [*zip(p, g, strict=True)]) for m, p, g in stacks]


def compare_with_the_host(dtype="float64", tolerance=1e-10):
    """A step with one gradient missing, and one that is not taken. Raises AssertionError."""
    groups = matrices(dtype)
    groups[0][1][1] = groups[0][1][1][0], None
    on_device = [
        (cupy.asarray(m), [(*there([(p,)])[0], None if g is None else cupy.asarray(g)) for p, g in pairs])
        for m, pairs in groups
    ]
    rules = {**RULES, "coefficients": COEFFICIENTS, "iterations": ITERATIONS}
    tables = optimizer.Tables()
    muon.step(tables, on_device, None, **rules)
    for (m, pairs), (m_there, pairs_there) in zip(groups, on_device, strict=True):
        rows, columns = m.shape[1:]
        for i, ((p, g), (p_there, _)) in enumerate(zip(pairs, pairs_there, strict=True)):
            g = np.zeros_like(p) if g is None else g
            expected = 0.9 * m[i] + g
            np.testing.assert_allclose(to_host(m_there[i]), expected, rtol=0, atol=1e-6)
            update = orthogonalize(g + 0.9 * expected) * max(1.0, rows / columns) ** 0.5
            np.testing.assert_allclose(to_host(p_there), 0.99 * p - 0.03 * update, rtol=0, atol=tolerance)
    before = [(to_host(m), [to_host(p) for p, _ in pairs]) for m, pairs in on_device]
    muon.step(tables, on_device, cupy.asarray([np.nan, 1.0, 0.0]), **rules)
    for (m, parameters), (m_there, pairs) in zip(before, on_device, strict=True):
        np.testing.assert_array_equal(to_host(m_there), m)
        for p, (p_there, _) in zip(parameters, pairs, strict=True):
            np.testing.assert_array_equal(to_host(p_there), p)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_step_over_all_matrices_equals_the_formulas(dtype, tolerance):
    compare_with_the_host(dtype, tolerance)
