"""Training on the device is training on the host: the same numbers, saved and resumed."""

import numpy as np
import pytest

import tinygrad_ds as tg
from layers import DeepSeekModel, generate
from tests.train.test_trainer import loss, next_work
from tests.train.tiny import CONFIG, tiny_model, tiny_rows
from tinygrad_ds.device import device_of, to_host
from train import AdamW, Muon, clip_grad_norm
from train.checkpoint import Checkpoints, load_model, load_state
from train.trainer import State, TrainingStopped, figure, train

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["reference", "fused"])
def kernels(request):
    return request.param


def make_optimizer(kind, model, moments=None):
    if kind == "adamw":
        return AdamW(model, lr=0.0, weight_decay=0.1, moments=moments)
    return Muon(model, lr=0.02, weight_decay=0.1, adamw_lr=0.01, moments=moments)


def figures_of_loss(model, part, count):
    losses = model.losses(*part, 0.3, 0.1, count=count)
    return losses.total, {"main": figure(losses.main)}


def trained(device, kernels, kind, steps, dtype="float64"):
    """The network and the records after some steps on a device."""
    records = []
    with tg.using(device=device, kernels=kernels):
        model = tiny_model(dtype)
        train(
            model,
            make_optimizer(kind, model),
            next_work(model, (2, 2)),
            figures_of_loss,
            State(total=32 * steps),
            learning_rate=lambda state: 0.01,
            clip=0.5,
            bias_speed=lambda state: 0.01,
            after=[lambda state, record: records.append(record)],
        )
    return model, records


def arrays_of(model):
    return {path: to_host(leaf.data) for path, leaf in model.named_leaves()} | {
        name: to_host(buffer.data) for name, buffer in model.named_buffers()
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-4)])
def test_steps_on_the_device_are_those_on_the_host(kernels, kind, dtype, tolerance):
    here, records = trained("cpu", "reference", kind, 3, dtype)
    there, records_there = trained("cuda", kernels, kind, 3, dtype)
    assert all(device_of(leaf.data) == "cuda" for leaf in there.parameters())
    for name, array in arrays_of(here).items():
        scale = max(np.abs(array).max(), 1.0)
        np.testing.assert_allclose(
            arrays_of(there)[name], array, rtol=0, atol=tolerance * scale, err_msg=name
        )
    for record, other in zip(records, records_there, strict=True):
        for number in ("loss", "main", "grad_norm", "lr"):
            assert isinstance(other[number], float)
            assert other[number] == pytest.approx(record[number], rel=max(tolerance, 1e-8))
        for name, load in record["loads"].items():
            np.testing.assert_array_equal(other["loads"][name], load)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(kernels, kind, spoilt):
    with tg.using(device="cuda", kernels=kernels):
        model = tiny_model()
        optimizer = make_optimizer(kind, model)
        options = {"learning_rate": lambda state: 0.01, "bias_speed": lambda state: 0.01}
        train(model, optimizer, next_work(model), loss, State(total=32), **options)
        before = arrays_of(model), optimizer.state_dict()

        def spoil(model, part, count):
            total, named = figures_of_loss(model, part, count)
            if spoilt == "loss":
                return total + tg.Tensor(np.inf), named
            weight = next(iter(model.parameters()))
            return total + (weight * np.nan).sum() * 0.0, named

        with pytest.raises(TrainingStopped, match="nan|inf"):
            train(model, optimizer, next_work(model), spoil, State(total=32), **options)
        for old, new in zip(before, (arrays_of(model), optimizer.state_dict()), strict=True):
            for name, array in old.items():
                np.testing.assert_array_equal(to_host(new[name]), to_host(array), err_msg=name)


def test_clip_grad_norm_gives_the_number_and_scales_in_place(kernels):
    norms, grads = [], []
    for device in ("cpu", "cuda"):
        with tg.using(device=device, kernels=kernels):
            model = tiny_model()
            model.loss(*tiny_rows(3), mtp_weight=0.3, balance_weight=0.1).backward()
            norms.append(clip_grad_norm(model, 0.25))
            grads.append([to_host(leaf.grad) for leaf in model.parameters()])
    assert isinstance(norms[1], float) and norms[1] == pytest.approx(norms[0], rel=1e-12)
    assert sum((grad**2).sum() for grad in grads[1]) == pytest.approx(0.25**2, rel=1e-9)
    for here, there in zip(*grads, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_is_the_same_run(kind, tmp_path):
    """Saved after two steps on the device, loaded there, two steps more; and from there to the host."""
    whole, _ = trained("cuda", "fused", kind, 4)
    with tg.using(device="cuda"):
        model = tiny_model()
        optimizer, state = make_optimizer(kind, model), State(total=64)
        options = {"learning_rate": lambda state: 0.01, "clip": 0.5, "bias_speed": lambda state: 0.01}
        train(model, optimizer, next_work(model, (2, 2)), figures_of_loss, state, **options)
        Checkpoints(tmp_path).save(model, optimizer, state)
        again = load_model(Checkpoints(tmp_path).latest())
        optimizer = make_optimizer(kind, again)
        state = load_state(Checkpoints(tmp_path).latest(), optimizer)
        state.total = 128
        train(again, optimizer, next_work(again, (2, 2)), figures_of_loss, state, **options)
    for name, array in arrays_of(whole).items():
        np.testing.assert_allclose(arrays_of(again)[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
    on_the_host = load_model(Checkpoints(tmp_path).latest())
    assert all(device_of(leaf.data) == "cpu" for leaf in on_the_host.parameters())


@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generated_tokens_are_the_same(kernels, speculative, temperature):
    prompts = [np.array([3, 1, 4, 1]), np.array([5, 9])]
    written = []
    for device, chosen in (("cpu", "reference"), ("cuda", kernels)):
        with tg.using(device=device, kernels=chosen):
            model = DeepSeekModel(CONFIG.replace(initializer_range=0.2), seed=3, dtype="float64")
            options = {"temperature": temperature, "speculative": speculative, "seed": 5}
            written.append(generate(model, prompts, max_new_tokens=8, **options))
    for here, there in zip(*written, strict=True):
        np.testing.assert_array_equal(to_host(there), here)


def test_recomputing_blocks_gives_the_same_gradient():
    grads = []
    for recompute in (False, True):
        with tg.using(device="cuda"):
            model = tiny_model()
            model.recompute = recompute
            model.loss(*tiny_rows(3)).backward()
            grads.append([to_host(leaf.grad) for leaf in model.parameters() if leaf.grad is not None])
    for one, other in zip(*grads, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)
