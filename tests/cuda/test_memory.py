"""What a run will need is told before, and where memory runs out, who holds it and what to do."""

import cupy
import numpy as np
import pytest

import tinygrad_ds as tg
from layers import DeepSeekModel
from layers.roofline import memory_to_train
from tests.train.tiny import CONFIG, tiny_model, tiny_rows
from train import AdamW, Muon
from train.config import Sizes
from train.device_memory import OutOfMemory, device_bytes, holders, to_lower, told_where_it_went, too_large
from train.device_step import clip_later

pytestmark = pytest.mark.cuda


class Peak(cupy.cuda.MemoryHook):
    """The most that the pool had given out."""

    name = "peak"
    found = 0

    def malloc_postprocess(self, **_):
        self.found = max(self.found, cupy.get_default_memory_pool().used_bytes())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("batch", "time", "vocab"), [(4, 16, 2048), (8, 32, 512)])
def test_predicted_peak_of_a_step_is_the_measured_one(batch, time, vocab, recompute):
    """To a tenth, where there are two micro-batches; in the strict modes the pool is not used."""
    config = Sizes().deepseek(vocab, time, 0)
    ids = np.random.default_rng(0).integers(0, vocab, (batch, time))
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    with tg.using(device="cuda"), Peak() as peak:
        model = DeepSeekModel(config)
        model.recompute = recompute
        optimizer = AdamW(model, lr=1e-3)
        for _ in range(2):
            loss = model.loss(ids, ids, mtp_weight=0.3, balance_weight=1e-4)
            loss.backward()
        clip_later(model, 1.0).finish(optimizer, {"loss": loss.data}, 0.01)
    needs = memory_to_train(config, batch, time, recompute=recompute)
    assert peak.found - before == pytest.approx(sum(needs.values()), rel=0.1)


def test_what_will_not_fit_is_told_with_what_to_lower():
    def needed(rows, recompute=False):
        return sum(memory_to_train(CONFIG, rows, 16, recompute=recompute).values())

    assert too_large(CONFIG, 16, 16, needed(16)) is None and too_large(CONFIG, 16, 16, None) is None
    told = too_large(CONFIG, 16, 16, needed(9))
    assert "lower micro_batch from 16 to 9, which adds up to the same batch; or add --recompute" in told
    assert too_large(CONFIG, 16, 16, needed(16, True)).endswith("; or add --recompute")
    little = too_large(CONFIG, 16, 16, needed(4, True))
    assert little.endswith(
        "; or add --recompute and lower micro_batch from 16 to 4, which adds up to the same batch"
    )
    assert too_large(CONFIG, 16, 16, needed(16, True), recompute=True) is None
    told = too_large(CONFIG, 16, 16, needed(5, True), recompute=True)
    assert told.count("recompute") == 0 and "lower micro_batch from 16 to 5" in told
    fixed = sum([*memory_to_train(CONFIG, 1, 16).values()][:3])
    assert "lower time, which is 16: with --recompute a sequence" in too_large(CONFIG, 16, 16, fixed + 1)
    assert "the network must be smaller" in too_large(CONFIG, 16, 16, fixed)


def test_bytes_of_the_device_are_known():
    assert device_bytes() is None
    with tg.using(device="cuda"):
        assert device_bytes() > 1 << 20


@pytest.mark.parametrize("make", [lambda model: AdamW(model, lr=0.0), lambda model: Muon(model)])
def test_running_out_of_memory_names_figure_holders_and_remedy(make):
    with tg.using(device="cuda"):
        model = tiny_model("float32")
        optimizer = make(model)
        weights = sum(leaf.data.nbytes for leaf in model.parameters())
        held = holders(model, optimizer)
        assert held["weights"] == weights and held["gradients"] == 0 and 0 < held["moments"] <= 2 * weights
        with pytest.raises(OutOfMemory) as caught, told_where_it_went(model, optimizer, to_lower(3, False)):
            cupy.empty(1 << 50, "u1")
    text = str(caught.value)
    assert (
        "1,125,899,906,842,624 bytes" in text
        and "weights" in text
        and text.endswith("Remedy: add --recompute, or lower micro_batch, which is 3.")
    )


def test_weights_are_as_before_when_memory_runs_out():
    with tg.using(device="cuda"):
        model = tiny_model("float32")
        optimizer = AdamW(model, lr=0.1)
        before = [leaf.numpy().copy() for leaf in model.parameters()]
        with pytest.raises(OutOfMemory), told_where_it_went(model, optimizer, to_lower(1, True)):
            model.loss(*tiny_rows(2)).backward()
            cupy.empty(1 << 50, "u1")
        for leaf, old in zip(model.parameters(), before, strict=True):
            np.testing.assert_array_equal(leaf.numpy(), old)
