"""The head with its loss: the same as both one after the other, in pieces, and in less memory."""

import numpy as np
import pytest
from hypothesis import given

import tinygrad_ds as tg
from tests.tinygrad_ds.strategies.loss import linear_cross_entropy_cases
from tinygrad_ds.kernels.cpu import head
from tinygrad_ds.tape import arrays_in


def leaves(rows, d=5, classes=7, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(rows, d)).astype(dtype), rng.normal(size=(classes, d)).astype(dtype)
    targets = rng.integers(0, classes, size=rows)
    return tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True), targets


def in_two_steps(x, weight, targets, **options):
    return tg.cross_entropy(tg.linear(x, weight), targets, **options)


def gradients(function, x, weight, targets, **options):
    """Loss and gradients, scaled by what comes from above."""
    x.grad = weight.grad = None
    loss = function(x, weight, targets, **options)
    (loss * 0.7).backward()
    return loss.data, x.grad, weight.grad


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [[], [0], slice(0, None, 2)])
def test_chunks_of_rows_add_up(kernels, monkeypatch, rows, reduction, ignored):
    """Fewer rows than one chunk has, as many, some left over; rows that are ignored are in no chunk."""
    monkeypatch.setattr(head, "ROWS", 4)
    x, weight, targets = leaves(rows)
    if rows > 1:
        targets[ignored] = -100
    expected = gradients(in_two_steps, x, weight, targets, reduction=reduction)
    given_ = gradients(tg.linear_cross_entropy, x, weight, targets, reduction=reduction)
    for a, b in zip(given_, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_rows_of_more_than_one_real_chunk(kernels):
    """In float32 too: the sums over rows are as good as those of the whole product."""
    x, weight, targets = leaves(2 * head.ROWS + 3, dtype=np.float32)
    expected = gradients(in_two_steps, x, weight, targets)
    for a, b in zip(gradients(tg.linear_cross_entropy, x, weight, targets), expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@given(case=linear_cross_entropy_cases())
def test_gradients_of_the_weight_sum_to_zero_over_the_classes(kernels, case):
    """Logits that all grow alike change nothing; and rows that do not count get no gradient at all."""
    x, weight = (tg.Tensor(array, requires_grad=True) for array in case.arrays[:2])
    targets = case.arrays[2]
    tg.linear_cross_entropy(x, weight, targets, **case.options).backward()
    np.testing.assert_allclose(weight.grad.sum(axis=0), 0, atol=1e-13)
    assert not x.grad[targets == case.options["ignore_index"]].any()


def test_no_row_that_counts_costs_nothing(kernels):
    x, weight, targets = leaves(4)
    for rows in (slice(None), slice(0, 0)):
        part = tg.Tensor(x.data[rows], requires_grad=True)
        nothing = np.full_like(targets[rows], -100)
        loss, grad_x, grad_weight = gradients(tg.linear_cross_entropy, part, weight, nothing, reduction="sum")
        assert loss == 0 and not grad_x.any() and not grad_weight.any()
        assert grad_x.shape == part.shape and grad_weight.shape == weight.shape


def test_ignored_rows_may_hold_anything(kernels):
    """NaN in a row that does not count reaches neither the loss nor any gradient."""
    x, weight, targets = leaves(3)
    targets[1] = -100
    kept = tg.Tensor(x.data[[0, 2]], requires_grad=True)
    loss, grad_kept, expected = gradients(tg.linear_cross_entropy, kept, weight, targets[[0, 2]])
    x.data[1] = np.nan
    given_ = gradients(tg.linear_cross_entropy, x, weight, targets)
    np.testing.assert_allclose(given_[0], loss, rtol=1e-14)
    np.testing.assert_allclose(given_[1], [grad_kept[0], np.zeros(5), grad_kept[1]], rtol=1e-13)
    np.testing.assert_allclose(given_[2], expected, rtol=1e-13, atol=1e-16)


def test_large_logits_do_not_overflow(kernels):
    x, weight, _ = leaves(3, dtype=np.float32)
    loss = tg.linear_cross_entropy(x * 1e4, weight, (x.data @ weight.data.T).argmax(axis=-1))
    assert loss.data == 0


def test_the_weights_half_may_wait_and_backward_may_run_twice(kernels):
    """What was computed ahead is scaled out of place: the second time gives the same again."""
    x, weight, targets = leaves(6)
    _, grad_x, grad_weight = gradients(tg.linear_cross_entropy, x, weight, targets)
    x.grad = weight.grad = None
    with tg.defer_weight_gradients() as later:
        (tg.linear_cross_entropy(x, weight, targets) * 0.7).backward()
    np.testing.assert_array_equal(x.grad, grad_x)
    assert weight.grad is None and len(later) == 1
    later.run()
    np.testing.assert_array_equal(weight.grad, grad_weight)
    x.grad = weight.grad = None
    loss = tg.linear_cross_entropy(x, weight, targets) * 0.7
    loss.backward(keep_saved=True)
    loss.backward()
    np.testing.assert_allclose(x.grad, 2 * grad_x, rtol=1e-15)
    np.testing.assert_allclose(weight.grad, 2 * grad_weight, rtol=1e-15)


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept():
    x, weight, targets = leaves(6)
    twin = tg.linear_cross_entropy.fused["cpu"]
    loss, saved = twin.forward(x.data, weight.data, targets)
    assert saved is not None
    with tg.no_grad():
        again, saved = twin.forward(x.data, weight.data, targets)
    assert again == loss and saved is None


def test_what_is_saved_does_not_grow_with_the_logits():
    """d numbers for each row and each class, and nothing for their pairs."""
    x, weight, targets = leaves(300, d=3, classes=400)
    _, saved = tg.linear_cross_entropy.fused["cpu"].forward(x.data, weight.data, targets)
    assert sum(array.nbytes for array in arrays_in(saved)) == (300 + 400) * 3 * 8


@pytest.mark.parametrize(
    ("x", "weight", "targets", "options", "message"),
    [
        ((2, 3), (5, 4), [0, 1], {}, r"x has shape \(2, 3\) but the weight \(5, 4\) takes 4 numbers"),
        ((), (5, 1), 0, {}, r"x has shape \(\) but the weight \(5, 1\)"),
        ((2, 3), (5, 3), [[0, 4]], {}, r"targets have shape \(1, 2\) but logits \(2, 5\) need \(2,\)"),
        ((2, 3), (5, 3), [0, 5], {}, r"target 5 at \(1,\) is no class: there are 5, so give 0..4, or -100"),
        ((2, 3), (5, 3), [-100, -100], {}, "no row to average: all 2 targets are -100"),
        ((0, 3), (5, 3), np.zeros(0, dtype=int), {}, "no row to average"),
        ((2, 3), (5, 3), [0.0, 1.0], {}, "targets are float64 but must be integers"),
        ((2, 3), (5, 3), [0, 1], {"reduction": "none"}, "reduction is 'none' but must be mean or sum"),
    ],
)
def test_errors_name_value_place_and_limit(kernels, x, weight, targets, options, message):
    with pytest.raises(ValueError, match=message):
        tg.linear_cross_entropy(np.zeros(x), np.zeros(weight), np.array(targets), **options)
