"""defer_weight_gradients: the weights' halves wait, in order, and come out with the same bits."""

import numpy as np
import pytest

import tinygrad_ds as tg


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


class Net:
    """Three products with parameters, one of which is used twice."""

    def __init__(self):
        self.x = tg.Tensor(draw(6, 4), requires_grad=True)
        self.w = [tg.Tensor(draw(4, 4, seed=i), requires_grad=True) for i in range(2)]
        self.bias = tg.Tensor(draw(4), requires_grad=True)

    def loss(self):
        h = tg.silu(tg.linear(self.x, self.w[0], self.bias))
        h = tg.silu(h @ self.w[1])
        return tg.linear(h, self.w[0]).sum()

    def grads(self):
        return [t.grad for t in (self.x, *self.w, self.bias)]


def at_once():
    net = Net()
    net.loss().backward()
    return net.grads()


def test_weights_wait_for_run():
    net = Net()
    with tg.defer_weight_gradients() as later:
        net.loss().backward()
    x, *others = net.grads()
    assert others == [None, None, None] and len(later) == 3
    assert x.tobytes() == at_once()[0].tobytes()
    later.run()
    assert len(later) == 0
    for a, b in zip(net.grads(), at_once(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_first_in_first_out():
    """Backward meets the last product first, so its weight's gradient is also the first to be had."""
    net = Net()
    with tg.defer_weight_gradients() as later:
        net.loss().backward()
    states = []
    while len(later):
        later.run(1)
        states.append([w.grad is not None for w in net.w] + [net.bias.grad is not None])
    assert states == [[True, False, False], [True, True, False], [True, True, True]]
    for a, b in zip(net.grads(), at_once(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_nothing_waits_outside_the_block():
    net = Net()
    with tg.defer_weight_gradients() as later:
        pass
    net.loss().backward()
    assert len(later) == 0 and all(g is not None for g in net.grads())


def test_what_waits_is_owned():
    """The caller may fill the array of gradients anew, drop the results, scale gradients in place."""
    net = Net()
    g = np.ones((6, 4), np.float32)
    with tg.defer_weight_gradients() as later:
        tg.linear(net.x, net.w[0]).backward(g)
    g[...] = np.nan
    net.x.grad *= 0
    later.run()
    np.testing.assert_allclose(net.w[0].grad, np.broadcast_to(net.x.data.sum(axis=0), (4, 4)), rtol=1e-5)


def test_written_inputs_are_found():
    net = Net()
    with tg.defer_weight_gradients() as later:
        net.loss().backward()
    net.x += 1
    with pytest.raises(RuntimeError, match="its input 0 was written in place after 'linear'"):
        later.run()


def test_products_of_results_do_not_wait():
    """a @ b of two results: other records wait for the gradient of b, so it comes at once."""
    x = tg.Tensor(draw(3, 3), requires_grad=True)
    with tg.defer_weight_gradients() as later:
        (tg.exp(x) @ tg.tanh(x)).sum().backward()
    assert len(later) == 0 and x.grad is not None


def test_frozen_weights_do_not_wait():
    x, w = tg.Tensor(draw(3, 3), requires_grad=True), tg.Tensor(draw(3, 3))
    with tg.defer_weight_gradients() as later:
        tg.linear(x, w).sum().backward()
    assert len(later) == 0 and w.grad is None


def test_recomputed_products_wait_too():
    net = Net()
    with tg.defer_weight_gradients() as later:
        y = tg.recompute(lambda x: tg.linear(x, net.w[0], net.bias), net.x)
        y.sum().backward()
    assert len(later) == 1 and net.w[0].grad is None and net.x.grad is not None
    later.run()
    assert net.bias.grad.tolist() == [6] * 4
