"""Where arrays are, what is copied between, and how often: nothing happens behind anybody's back."""

import cupy
import numpy as np
import pytest

import tinygrad_ds as tg
from layers import DeepSeekModel
from tests.train.tiny import CONFIG
from tinygrad_ds.device import chosen, device_of, namespace, place

pytestmark = pytest.mark.cuda
MIXED = [
    lambda a, b: tg.add(a, b),
    lambda a, b: tg.matmul(a, b),
    lambda a, b: tg.concatenate([a, b], axis=0),
    lambda a, b: tg.where(a > 0, a, b),
    lambda a, b: tg.swiglu(a, b),
    lambda a, b: tg.rmsnorm(a, b[0]),
    lambda a, b: tg.linear(a, b),
    lambda a, b: tg.grouped_linear(a, b[None], np.array([0, 3])),
]


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("call", MIXED)
def test_arrays_of_host_and_device_never_meet(call, turned, kernels):
    """CuPy refuses to mix its arrays with NumPy's, and so does everything that is built on it."""
    here, there = np.ones((3, 3)), cupy.ones((3, 3))
    given = (there, here) if turned else (here, there)
    with tg.using(kernels=kernels), pytest.raises((TypeError, ValueError)):
        call(*given)


def test_the_setting_places_what_is_made():
    with tg.using(device="cuda"):
        x = tg.Tensor([1.0, 2.0], requires_grad=True)
        (x * x).sum().backward()
        model = DeepSeekModel(CONFIG)
        logits = model(np.array([[1, 2, 3]]))
    assert isinstance(x.data, cupy.ndarray) and isinstance(x.grad, cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(x.grad), [2.0, 4.0])
    assert isinstance(x.numpy(), np.ndarray) and isinstance(logits.data, cupy.ndarray)
    assert {device_of(leaf.data) for leaf in model.parameters()} == {"cuda"}
    assert isinstance(tg.Tensor([1.0]).data, np.ndarray)


def test_place_moves_only_what_is_elsewhere():
    there = cupy.arange(3.0)
    with tg.using(device="cuda"):
        assert place(there) is there
        assert namespace(place(np.arange(3.0))) is cupy
    assert isinstance(place(there), np.ndarray)


def test_a_seed_means_the_same_weights_on_both():
    models = []
    for device in ("cpu", "cuda"):
        with tg.using(device=device):
            models.append(DeepSeekModel(CONFIG, seed=4))
    for (name, here), (_, there) in zip(*(model.named_parameters() for model in models), strict=True):
        np.testing.assert_array_equal(here.numpy(), there.numpy(), err_msg=name)


def test_processes_of_one_machine_share_out_the_devices(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "5")
    with chosen("cuda"):
        assert cupy.cuda.Device().id == 5 % cupy.cuda.runtime.getDeviceCount()
