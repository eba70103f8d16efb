"""The losses of post-training against torch's own differentiation, and TRL's where that is installed."""

import importlib
from collections import defaultdict
from types import SimpleNamespace

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


def trl_grpo(logp, old, advantages, mask, ref, beta, aggregate, ratio, max_length, weighted):
    """TRL's own loss, read from its trainer's method; in place of a network stand our log-probabilities."""
    trainer = pytest.importorskip("trl", reason="TRL is not installed").GRPOTrainer
    alone = SimpleNamespace(
        num_processes=1,
        reduce=lambda x, reduction="sum": x,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
    )
    told: dict = {"train": defaultdict(list), "eval": defaultdict(list)}
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *given, **named: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=ratio,
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=weighted, delta=None),
        epsilon_low=0.2,
        epsilon_high=0.28,
        loss_type=aggregate,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=max_length,
        _entropy_bonus_enabled=False,
        accelerator=alone,
        _metrics=told,
    )
    ids = torch.zeros(logp.shape, dtype=torch.long)
    given = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids}
    given |= {"completion_mask": mask.long(), "advantages": advantages}
    given |= {"old_per_token_logps": old, "ref_per_token_logps": ref}
    return trainer._compute_loss(stand_in, None, given)


@pytest.mark.parametrize("aggregate", ["grpo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(("beta", "weighted"), [(0.0, False), (0.1, False), (0.1, True)])
def test_grpo_and_its_gradient_are_those_of_trl(aggregate, ratio, beta, weighted):
    for seed in range(5):
        arrays = rewarded(seed)
        arrays[3][:, 0] = True  # TRL divides by the tokens of a sequence in its metrics
        ours = tg.Tensor(arrays[0], requires_grad=True)
        named = {"beta": beta, "aggregate": aggregate, "ratio": ratio, "max_length": 9}
        loss = grpo_loss(ours, *arrays[1:], weighted_k3=weighted, **named)
        loss.backward()
        theirs = torch.tensor(arrays[0], requires_grad=True)
        others = [torch.tensor(array) for array in arrays[1:]]
        expected = trl_grpo(theirs, *others, weighted=weighted, **named)
        expected.backward()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


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
