"""The other side: transformers in float64 throughout, and arrays to and from torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.golden.make import Float64, Recorder, published_grads
from tests.layers.cases import distance
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array

torch.set_num_threads(1)  # tests.golden.make asks for two


def to_torch(array: np.ndarray, requires_grad: bool = False) -> torch.Tensor:
    """A copy."""
    copy = torch.from_numpy(np.array(array))
    return copy.requires_grad_(requires_grad)


def their_model(folder: Path, **options) -> PreTrainedModel:
    """What transformers makes of a checkpoint: float64, every tensor of the files used and none missing."""
    with Float64():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float64,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
            **options,
        )
    if "quantization_config" in options:  # what is not in FP8 keeps the files' bfloat16 then
        model.double()
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        assert x.dtype == torch.float64, name
    return model.eval()


def their_logits(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """(batch, time, vocab)"""
    with Float64(), torch.no_grad():
        return model(to_torch(ids), use_cache=False).logits.numpy()


def their_pass(
    model: PreTrainedModel, ids: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float, dict[str, np.ndarray], float]:
    """Logits, loss, gradients under the published names, and the closest decision of any router."""
    recorder = Recorder(model)
    with Float64():
        out = model(to_torch(ids), labels=to_torch(labels), use_cache=False)
        out.loss.backward()
    grads = {name: g.numpy() for name, g in published_grads(model).items()}
    return out.logits.detach().numpy(), float(out.loss.detach()), grads, recorder.margin


def assert_same_function(
    ours: Callable[..., Tensor], theirs: Callable[..., torch.Tensor], *arrays: Array, tolerance: float = 1e-12
) -> None:
    """Values, and gradients for all arrays from a random gradient of the values, relative to the largest."""
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    peers = [to_torch(array, requires_grad=True) for array in arrays]
    y, other = ours(*tensors), theirs(*peers)
    assert distance(y.data, other.detach().numpy()) <= tolerance
    g = np.random.default_rng(7).normal(size=y.shape)
    y.backward(g)
    other.backward(to_torch(g))
    for i, (tensor, peer) in enumerate(zip(tensors, peers)):
        assert distance(tensor.grad, peer.grad.numpy()) <= tolerance, f"gradient of array {i}"
