"""What a step costs the machine: memory is used again, and nothing kept grows with the square of time."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel
from layers.roofline import memory_to_train
from tinygrad_ds.tape import arrays_in
from train.config import Sizes

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}

MOST_FAULTS = """
import resource
import numpy as np
from layers import DeepSeekConfig, DeepSeekModel
from tests.train.test_memory import SIZES
from train import AdamW, clip_grad_norm

model = DeepSeekModel(DeepSeekConfig.from_dict(SIZES))
optimizer, random = AdamW(model, lr=1e-3), np.random.default_rng(0)

def step():
    ids = random.integers(0, 512, (8, 257))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    clip_grad_norm(model, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults = [step() for _ in range(12)]
assert faults[0] > 1000, faults  # 4 MB of fresh memory are as many pages, so the count counts
print(max(faults[6:]))
"""


def test_a_steady_step_takes_no_fresh_memory():
    """At most 1,000 page faults, as arrays of a step lie where those of the last one lay."""
    done = subprocess.run([sys.executable, "-c", MOST_FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1000


def peak_of(model, ids) -> int:
    """Bytes at most of a micro-batch, with the gradient of one before it."""
    tracemalloc.start()
    try:
        for _ in range(2):
            tracemalloc.reset_peak()
            model.loss(ids, ids, mtp_weight=0.3).backward()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        model.zero_grad()


@pytest.mark.parametrize(("vocab", "layers"), [(300, 3), (4096, 6)])
def test_recomputing_saves_what_is_predicted(vocab, layers):
    """To 15 %, of the peak of a step.

    A CPU's norms keep their results, which others keep too, in place of their inputs.
    """
    config = Sizes(num_hidden_layers=layers).deepseek(vocab, 64, 0)
    model, ids = DeepSeekModel(config), np.random.default_rng(0).integers(0, vocab, (8, 64))
    peaks, told = {}, {}
    for model.recompute in (False, True):
        model.loss(ids, ids, mtp_weight=0.3).backward()  # compiles kernels, which takes memory too
        model.zero_grad()
        peaks[model.recompute] = peak_of(model, ids)
        told[model.recompute] = sum(memory_to_train(config, 8, 64, recompute=model.recompute).values())
    inputs_of_norms = 4 * 8 * 64 * layers * (2 * config.hidden_size + config.kv_lora_rank)
    saved = told[False] - told[True] - inputs_of_norms
    assert saved > 0.3 * peaks[False]
    assert peaks[False] - peaks[True] == pytest.approx(saved, rel=0.15)


class Kept:
    """Sizes of all arrays that were made or saved."""

    def __init__(self) -> None:
        self.sizes: set[int] = set()

    def forward(self, pair, arrays, result, saved, seconds) -> None:
        """A call's results and what it saved."""
        self.sizes |= {array.size for array in arrays_in((result, saved))}

    def backward(self, record, grads, given, seconds) -> None:
        """A call's gradients."""
        self.sizes |= {array.size for array in arrays_in(given)}


def test_no_array_of_the_size_of_all_scores_is_kept():
    time, model = 97, DeepSeekModel(DeepSeekConfig.from_dict(SIZES))  # a prime: no other size has its square
    ids = np.random.default_rng(0).integers(0, 512, (2, time + 1))
    with tg.observe(Kept()) as fused:
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    with tg.observe(Kept()) as reference, tg.using(kernels="reference"):
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert [size for size in fused.sizes if size and size % time**2 == 0] == []
    assert 2 * SIZES["num_attention_heads"] * time**2 in reference.sizes, "the reference's would be seen"
