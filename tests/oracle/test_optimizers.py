"""Optimizers beside torch's, over steps with the same gradients, in float64."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import tinygrad_ds as tg
from tests.layers.cases import distance
from tests.oracle.peers import to_torch
from tests.train.tiny import tiny_model, with_gradient
from train.muon import Muon, is_hidden_matrix, orthogonalize
from train.optimizer import AdamW, clip_grad_norm

pytestmark = pytest.mark.oracle

STEPS = 10


class NoBfloat16(TorchFunctionMode):
    """torch's Muon rounds gradients to bfloat16; here they keep their format."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0].clone() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


@pytest.fixture(params=["reference", "fused"], autouse=True)
def kernels(request):
    with tg.using(kernels=request.param):
        yield


@pytest.mark.parametrize("betas, decay, eps", [((0.9, 0.95), 0.1, 1e-8), ((0.5, 0.999), 0.0, 1e-3)])
def test_adamw(betas, decay, eps):
    model = tiny_model()
    ours = AdamW(model, lr=0.01, betas=betas, weight_decay=decay, eps=eps)
    peers = {name: to_torch(p.data, requires_grad=True) for name, p in model.named_parameters()}
    matrices = [p for p in peers.values() if p.ndim > 1]
    vectors = [p for p in peers.values() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=betas, weight_decay=decay, eps=eps)
    for step in range(STEPS):
        with_gradient(model, seed=step)
        for name, p in model.named_parameters():
            peers[name].grad = to_torch(p.grad)
        ours.lr = theirs.param_groups[0]["lr"] = theirs.param_groups[1]["lr"] = 0.01 / (step + 1)
        ours.step()
        theirs.step()
    for name, p in model.named_parameters():
        assert distance(p.data, peers[name].detach().numpy()) < 1e-12, name


@pytest.mark.parametrize("share", [0.1, 1.5])
def test_clip_grad_norm(share):
    model = with_gradient(tiny_model())
    peers = {name: to_torch(p.data, requires_grad=True) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        peers[name].grad = to_torch(p.grad)
    largest = share * float(torch.nn.utils.get_total_norm([p.grad for p in peers.values()]))
    norm = clip_grad_norm(model, largest)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(peers.values(), largest)), rel=1e-12)
    softened = norm / (norm + 1e-6) if share < 1 else 1.0  # torch divides by a little more than the norm
    for name, p in model.named_parameters():
        assert distance(p.grad * softened, peers[name].grad.numpy()) < 1e-12, name


@pytest.mark.parametrize("shape", [(7, 7), (5, 20), (20, 5), (1, 3)])
def test_orthogonalisation(shape):
    """By one step of torch's Muon from 0 without momentum, which is the orthogonalised gradient itself."""
    g = 1e6 * np.random.default_rng(0).normal(size=shape)  # so that the smallest divisors do not matter
    p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    p.grad = to_torch(g)
    with NoBfloat16():
        torch.optim.Muon([p], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    rows, columns = shape
    assert distance(-(max(1, rows / columns) ** 0.5) * orthogonalize(g), p.detach().numpy()) < 1e-9


def test_muon():
    model = tiny_model()
    ours = Muon(model, lr=0.02, momentum=0.9, weight_decay=0.1)
    peers = {
        name: to_torch(p.data, requires_grad=True)
        for name, p in model.named_parameters()
        if is_hidden_matrix(name, p.shape)
    }
    theirs = torch.optim.Muon(list(peers.values()), lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(STEPS):
        with_gradient(model, seed=step)
        for leaf in model.parameters():
            leaf.grad *= 1e6
        for name, p in model.named_parameters():
            if name in peers:
                peers[name].grad = to_torch(p.grad)
        ours.step()
        with NoBfloat16():
            theirs.step()
    for name, p in model.named_parameters():
        if name in peers:
            assert distance(p.data, peers[name].detach().numpy()) < 1e-9, name
