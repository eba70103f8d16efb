"""recompute: the same bits as the plain call, for less memory."""

import functools
import weakref

import numpy as np
import pytest

import tinygrad_ds as tg


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def mlp(w1, w2):
    """A function with parameters inside, and an input that it uses twice."""
    return lambda x: tg.linear(tg.silu(tg.linear(x, w1)), w2) + x


def run(through):
    """Two such functions, one after the other, with one parameter in common; all gradients and the value."""
    x = tg.Tensor(draw(6, 4), requires_grad=True)
    w = [tg.Tensor(draw(4, 4, seed=i), requires_grad=True) for i in range(3)]
    y = x
    for f in (mlp(w[0], w[1]), mlp(w[1], w[2])):
        y = through(f, y)
    (y * y).sum().backward()
    return [y.data] + [t.grad for t in (x, *w)]


def test_same_bits_as_the_plain_call():
    for a, b in zip(run(tg.recompute), run(lambda f, x: f(x)), strict=True):
        assert a.dtype == np.float32 and a.tobytes() == b.tobytes()


def test_nested():
    def outer(f, x):
        return tg.recompute(lambda x: tg.recompute(f, x), x)

    for a, b in zip(run(outer), run(lambda f, x: f(x)), strict=True):
        assert a.tobytes() == b.tobytes()


def test_several_results_and_inputs_of_all_kinds():
    x = tg.Tensor(draw(3, 4), requires_grad=True)
    fixed = tg.Tensor(draw(4), requires_grad=False)

    def f(x, fixed, plain, axis, nothing):
        return tg.split(x * fixed + plain, 2, axis) + (x.sum(),)

    first, _, total = tg.recompute(f, x, fixed, draw(4, seed=1), 1, None)
    (first.sum() + 2 * total).backward()
    expected = np.broadcast_to(np.where(np.arange(4) < 2, fixed.data, 0) + 2, (3, 4))
    np.testing.assert_allclose(x.grad, expected, rtol=1e-6)
    assert fixed.grad is None


def test_only_inputs_are_kept():
    x = tg.Tensor(draw(3, 4), requires_grad=True)
    followed = []

    def f(x):
        y = tg.exp(x)
        followed.append(weakref.ref(y))
        return y * y

    y = tg.recompute(f, x)
    assert followed[0]() is None
    assert y.record.saved_bytes() == x.data.nbytes
    y.sum().backward()
    assert len(followed) == 2
    np.testing.assert_allclose(x.grad, 2 * np.exp(2 * x.data), rtol=1e-6)


def test_results_from_outside_are_refused():
    x = tg.Tensor(draw(3), requires_grad=True)
    outside = tg.exp(x)
    y = tg.recompute(lambda x: x * outside, x)
    with pytest.raises(
        RuntimeError, match="uses the result of 'exp' from outside: pass it as one of the inputs"
    ):
        y.sum().backward()


def test_written_inputs_are_found():
    x = tg.Tensor(draw(3), requires_grad=True)
    y = tg.recompute(tg.exp, x).sum()
    x += 1
    with pytest.raises(RuntimeError, match=r"its input 0 was written in place after 'recompute\(function\)'"):
        y.backward()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_written_parameters_are_found(depth):
    """They are no inputs, but a second run with other numbers is another function."""
    x, w = (tg.Tensor(draw(3, 3, seed=seed), requires_grad=True) for seed in (1, 2))
    w *= 2.0  # before the call, which is nobody's concern

    def nested(function, x):
        for _ in range(depth):
            function = functools.partial(tg.recompute, function)
        return function(x)

    y = nested(lambda x: tg.exp(x @ w), x)
    nested(lambda x: x @ w, x).sum().backward()
    x.grad = w.grad = None
    w[0, 0] = 5.0
    with pytest.raises(RuntimeError, match=r"recompute\(<lambda>\): a parameter .* was written in place"):
        y.sum().backward()
    assert w.grad is None and x.grad is None


def test_nothing_is_recorded_without_gradients():
    with tg.no_grad():
        assert tg.recompute(tg.exp, tg.Tensor(draw(3), requires_grad=True)).record is None


def test_settings_of_the_first_run_hold_for_the_second():
    seen = []

    def f(x):
        seen.append(tg.settings.current().kernels)
        return x * x

    x = tg.Tensor(draw(3), requires_grad=True)
    with tg.using(kernels="reference"):
        y = tg.recompute(f, x)
    with tg.using(kernels="fused"):
        y.sum().backward()
    assert seen == ["reference", "reference"]
