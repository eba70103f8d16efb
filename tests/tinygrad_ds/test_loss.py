"""What follows from the mathematics of the loss, for both kernels, and what its errors say."""

import numpy as np
import pytest
from hypothesis import assume, given

import tinygrad_ds as tg
from tests.tinygrad_ds.strategies.loss import cross_entropy_cases


@given(case=cross_entropy_cases())
def test_gradient_rows_sum_to_zero(kernels, case):
    """Adding a constant to all logits of a row changes nothing; ignored rows get no gradient at all."""
    logits, targets = case.arrays
    leaf = tg.Tensor(logits, requires_grad=True)
    loss = tg.cross_entropy(leaf, targets, **case.options)
    loss.backward(np.ones(loss.shape))
    np.testing.assert_allclose(leaf.grad.sum(axis=-1), 0, atol=1e-14)
    assert not leaf.grad[targets == case.options["ignore_index"]].any()
    np.testing.assert_allclose(
        tg.cross_entropy(logits + 3, targets, **case.options).data, loss.data, atol=1e-13
    )


@given(case=cross_entropy_cases())
def test_reductions_agree(kernels, case):
    logits, targets = case.arrays
    ignored = case.options["ignore_index"]
    counted = targets != ignored
    assume(counted.any())
    each = tg.cross_entropy(logits, targets, ignore_index=ignored, reduction="none").data
    assert not each[~counted].any()
    np.testing.assert_allclose(
        tg.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum").data, each.sum(), rtol=1e-13
    )
    np.testing.assert_allclose(
        tg.cross_entropy(logits, targets, ignore_index=ignored).data, each[counted].mean(), rtol=1e-13
    )


def test_uniform_logits_cost_the_logarithm_of_the_classes(kernels):
    logits, targets = np.full((4, 7), 2.5, dtype=np.float32), np.arange(4)
    loss = tg.cross_entropy(logits, targets)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss.data, np.log(7), rtol=1e-6)


def test_ignored_rows_may_hold_anything(kernels):
    """NaN in a row that does not count reaches neither the loss nor the gradient."""
    logits = np.array([[0.0, 1.0], [np.nan, np.inf], [2.0, 0.0]])
    leaf = tg.Tensor(logits, requires_grad=True)
    with np.errstate(invalid="ignore"):
        loss = tg.cross_entropy(leaf, np.array([1, -100, 0]))
        loss.backward()
    kept = tg.Tensor(logits[[0, 2]], requires_grad=True)
    expected = tg.cross_entropy(kept, np.array([1, 0]))
    expected.backward()
    np.testing.assert_allclose(loss.data, expected.data, rtol=1e-14)
    np.testing.assert_allclose(leaf.grad, [kept.grad[0], [0, 0], kept.grad[1]], rtol=1e-14)


def test_large_and_infinite_logits(kernels):
    """No overflow; a class of probability 0 costs nothing unless it is the target; NaN stays in its row."""
    logits = np.array([[1e4, 0.0, -1e4], [0.0, -np.inf, 0.0], [0.0, -np.inf, 0.0], [0.0, np.nan, 0.0]])
    with np.errstate(invalid="ignore"):
        each = tg.cross_entropy(logits, np.array([1, 0, 1, 0]), reduction="none").data
    np.testing.assert_allclose(each, [1e4, np.log(2), np.inf, np.nan], rtol=1e-14)


@pytest.mark.parametrize(
    ("logits", "targets", "options", "message"),
    [
        ((2, 5), [[0, 5]], {}, r"targets have shape \(1, 2\) but logits \(2, 5\) need \(2,\)"),
        ((2, 5), [0, 5], {}, r"target 5 at \(1,\) is no class: there are 5, so give 0..4, or -100"),
        ((2, 2, 5), [[0, 1], [-3, 9]], {}, r"target -3 at \(1, 0\) is no class"),
        ((2, 5), [-100, 0], {"ignore_index": 0}, r"target -100 at \(0,\) is no class.* or 0 for"),
        ((2, 5), [-100, -100], {}, "no row to average: all 2 targets are -100"),
        ((0, 5), np.zeros(0, dtype=int), {}, "no row to average"),
        ((2, 5), [0.0, 1.0], {}, "targets are float64 but must be integers"),
        ((2, 5), [0, 1], {"reduction": "avg"}, "reduction is 'avg' but must be mean, sum or none"),
    ],
)
def test_errors_name_value_place_and_limit(kernels, logits, targets, options, message):
    with pytest.raises(ValueError, match=message):
        tg.cross_entropy(np.zeros(logits), np.array(targets), **options)
