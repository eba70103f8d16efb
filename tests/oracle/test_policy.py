"""The losses of post-training against torch's own differentiation, and TRL's where that is installed."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from posttrain import grpo_loss, kd_loss

pytestmark = pytest.mark.oracle


def rewarded(seed):
    """Completions of different lengths."""
    rng = np.random.default_rng(seed)
    rows, time = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    logp, ref = (-rng.uniform(0.05, 3, (rows, time)) for _ in range(2))
    mask = rng.random((rows, time)) < 0.8
    mask[0, 0] = True
    return logp, logp - rng.uniform(-0.7, 0.7, (rows, time)), rng.normal(size=rows), mask, ref


def torch_grpo(logp, old, advantages, mask, ref, beta, aggregate, ratio, max_length):
    """The same, written in torch."""
    mask, a = mask.double(), advantages[:, None]
    n = mask.sum(1, keepdim=True).clamp(min=1)
    gain = (logp - old) * mask
    rho = torch.exp(gain if ratio == "token" else (gain.sum(1, keepdim=True) / n))
    losses = -torch.minimum(rho * a, rho.clamp(0.8, 1.28) * a)
    behind = ref - logp
    losses = losses + beta * (behind.exp() - behind - 1)
    if aggregate == "grpo":
        return ((losses * mask).sum(1, keepdim=True) / n).mean()
    return (losses * mask).sum() / (mask.sum() if aggregate == "bnpo" else len(mask) * max_length)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["grpo", "bnpo", "dr_grpo"]),
    st.sampled_from(["token", "sequence"]),
    st.sampled_from([0.0, 0.1]),
)
def test_grpo_and_its_gradient(seed, aggregate, ratio, beta):
    arrays = rewarded(seed)
    ours = tg.Tensor(arrays[0], requires_grad=True)
    loss = grpo_loss(ours, *arrays[1:], beta=beta, aggregate=aggregate, ratio=ratio, max_length=9)
    loss.backward()
    theirs = torch.tensor(arrays[0], requires_grad=True)
    others = [torch.tensor(array) for array in arrays[1:]]
    expected = torch_grpo(theirs, *others, beta, aggregate, ratio, 9)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


def torch_jsd(student, teacher, counted, beta, temperature):
    """The same, written in torch, with its own KL."""
    log_q, log_p = (torch.log_softmax(x / temperature, -1)[counted] for x in (student, teacher))

    def kl(a, b):
        return torch.nn.functional.kl_div(b, a, reduction="none", log_target=True).sum()

    if beta == 0:
        total = kl(log_p, log_q)
    elif beta == 1:
        total = kl(log_q, log_p)
    else:
        log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp())
        total = beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    return total / counted.sum()


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.sampled_from([0.7, 1.0, 3.0])
)
def test_divergence_and_its_gradient(seed, beta, temperature):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 2, (2, 2, 3, 7))
    labels = np.where(rng.random((2, 3)) < 0.3, -100, 1)
    labels[0, 0] = 1
    ours = tg.Tensor(student, requires_grad=True)
    loss = kd_loss(ours, teacher, labels, beta=beta, temperature=temperature)
    loss.backward()
    theirs = torch.tensor(student, requires_grad=True)
    expected = torch_jsd(theirs, torch.tensor(teacher), torch.tensor(labels != -100), beta, temperature)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-8, atol=1e-12)


def trl_divergence():
    """TRL's generalised Jensen-Shannon loss, wherever this release keeps it."""
    pytest.importorskip("trl", reason="TRL is not installed")
    for module in ("trl.experimental.gkd.gkd_trainer", "trl.trainer.gkd_trainer"):
        try:
            return importlib.import_module(module).GKDTrainer.generalized_jsd_loss
        except (ImportError, AttributeError):
            continue
    pytest.skip("this release of TRL has no GKDTrainer")


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_divergence_is_that_of_trl(beta):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 2, 3, 7))
    labels = np.array([[1, -100, 2], [-100, 3, 4]])
    arrays = [torch.tensor(array) for array in (student, teacher, labels)]
    expected = trl_divergence()(*arrays, beta=beta, temperature=2.0)
    assert float(kd_loss(student, teacher, labels, beta=beta, temperature=2.0)) == pytest.approx(
        expected.item()
    )
