"""Products with weights in bfloat16 and FP8: which are rounded, by how much, and what is kept of them."""

from dataclasses import replace

import numpy as np
import pytest

import tinygrad_ds as tg
from lab.recording import Recorder
from layers.precision import EXACT, Bfloat16, Fp8, precision, products
from tests.layers.cases import model_of, some_ids
from tinygrad_ds.ops.quantize import Infinities
from tinygrad_ds.tape import arrays_in

IDS, TARGETS = some_ids(4, 24), some_ids(4, 24, seed=1)
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "v_head_dim": 16,
    "num_nextn_predict_layers": 1,
    "n_shared_experts": 1,
    "initializer_range": 0.02,
}
FP8 = {"fp8_linear", "fp8_swiglu_linear", "fp8_experts_in", "fp8_experts_out"}


class Kept:
    """An observer: every call with its arrays, and what its forward saved."""

    def __init__(self):
        self.calls = []

    def forward(self, pair, arrays, result, saved, seconds):
        self.calls.append((pair.name, arrays, saved))

    def backward(self, record, grads, given, seconds):
        pass


def small_model():
    return model_of(dtype="float32", **SIZES)


def step(model, chosen, seed=0, infinities=None):
    """Loss and gradients, in the order of the leaves."""
    model.zero_grad()
    with precision(chosen, seed=seed, infinities=infinities):
        loss = model.loss(IDS, TARGETS, mtp_weight=0.3, balance_weight=1e-2)
        loss.backward()
    return float(loss), [leaf.grad.copy() for _, leaf in model.named_leaves()]


def cosine(a, b):
    """Of two lists of arrays, each as one vector."""
    a, b = (np.concatenate([part.ravel() for part in parts]).astype(np.float64) for parts in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


def recorded(chosen):
    """Every call of a step, with the module that made it."""
    model = small_model()
    with tg.observe(Recorder(model)) as recorder:
        step(model, chosen)
    return recorder.calls


@pytest.mark.parametrize(
    ("chosen", "off"),
    [
        (Bfloat16(), 1e-4),
        (Fp8(), 1e-3),
        (Fp8(scaling="tensor"), 1e-3),
        (Fp8(power_of_two=True), 1e-3),
        (Fp8(accumulation="tensor_core"), 1e-3),
        (Fp8(stochastic=True), 1e-3),
    ],
)
def test_loss_and_gradients_are_near_those_of_float32_and_not_the_same(chosen, off):
    model = small_model()
    exact = step(model, EXACT)
    for moe in model.moe_layers().values():
        moe.replay = moe.chosen  # another expert is no matter of rounding
    rounded = step(model, chosen)
    assert 0 < abs(rounded[0] - exact[0]) < off * exact[0]
    assert 0.99 < cosine(rounded[1], exact[1]) < 1 - 1e-7


@pytest.mark.parametrize("chosen", [Bfloat16(), Fp8()])
def test_master_weights_and_their_gradients_stay_float32(chosen):
    model = small_model()
    before = [leaf.data.copy() for _, leaf in model.named_leaves()]
    _, grads = step(model, chosen)
    assert {grad.dtype for grad in grads} == {np.dtype(np.float32)}
    for (_, leaf), same in zip(model.named_leaves(), before, strict=True):
        assert leaf.dtype == np.float32 and np.array_equal(leaf.data, same)


def test_every_linear_and_all_experts_are_in_fp8_and_nothing_else():
    exact, narrow = recorded(EXACT), recorded(Fp8())
    was = {call.module for call in exact if call.name in ("linear", "experts_in", "experts_out")}
    routers = {call.module for call in narrow if call.name == "linear"}
    assert routers == {"layers.1.mlp.gate", "mtp.0.block.mlp.gate"}
    expanded = {call.module for call in narrow if call.module.endswith("kv_b_proj")}
    assert len(expanded) == 3  # in float32 it was absorbed, a matmul; rounded it stays whole
    assert {call.module for call in narrow if call.name in FP8} == was - routers | expanded
    names = {call.name for call in narrow}
    assert FP8 <= names and not names & {"experts_in", "experts_out", "swiglu"}


def test_what_is_no_product_with_weights_is_the_same_call_in_all_precisions():
    kinds = "embedding rmsnorm rope attention router_selection linear_cross_entropy cross_entropy".split()
    steps = [recorded(chosen) for chosen in (EXACT, Bfloat16(), Fp8())]
    counts = [[sum(call.name == kind for call in calls) for kind in kinds] for calls in steps]
    assert counts[0] == counts[1] == counts[2] and sum(counts[0]) > 5


def test_bfloat16_rounds_both_factors_of_every_linear():
    model = small_model()
    with tg.observe(Kept()) as kept, precision(Bfloat16()):
        model.loss(IDS, TARGETS)
    routers = {id(moe.gate.weight.data) for moe in model.moe_layers().values()}
    head = id(model.lm_head.weight.data)
    seen = 0
    for name, arrays, _ in kept.calls:
        if name in ("linear", "experts_in") and id(arrays[1]) not in routers | {head}:
            seen += 1
            for factor in arrays[:2]:
                assert not (factor.view(np.uint32) & 0xFFFF).any()  # the lower half of the bits
    assert seen > 10


@pytest.mark.parametrize("chosen", [Fp8(), Fp8(after_attention="e4m3")])
def test_the_input_behind_attention_is_kept_in_twelve_bits_with_scales_that_are_powers_of_two(chosen):
    model = small_model()
    with tg.observe(Kept()) as kept, precision(chosen):
        model.loss(IDS, TARGETS, mtp_weight=0.3)
    blocks = [*model.layers, *(module.block for module in model.mtp)]
    behind = {id(block.self_attn.o_proj.weight.data) for block in blocks}
    found = {True: [], False: []}
    for name, arrays, saved in kept.calls:
        if name == "fp8_linear":
            found[id(arrays[1]) in behind].append(saved)
    assert len(found[True]) == 3
    wide = chosen.after_attention == "e5m6"
    for saved in found[True]:
        assert saved.x.codes.dtype == (np.uint16 if wide else np.uint8)
        assert bool((np.frexp(saved.x.scales)[0] == 0.5).all()) == wide
    assert {saved.x.codes.dtype for saved in found[False]} == {np.dtype(np.uint8)}


def kept_bytes(chosen):
    """Bytes of distinct memory that waits for backward, the weights left out."""
    model = small_model()
    own = {id(leaf.data) for _, leaf in model.named_leaves()}
    with tg.observe(Kept()) as kept, precision(chosen):
        model.loss(IDS, TARGETS)
    kinds = FP8 | {"linear", "experts_in", "experts_out", "swiglu"}
    arrays = {
        id(array): array.nbytes
        for name, _, saved in kept.calls
        if name in kinds
        for array in arrays_in(saved)
        if id(array) not in own and array.size > 64 and id(getattr(array, "base", None)) not in own
    }
    return sum(arrays.values())


def test_what_waits_for_backward_takes_less_than_half():
    assert kept_bytes(Fp8()) < 0.5 * kept_bytes(EXACT)


def test_stochastic_rounding_repeats_with_its_seed_and_differs_with_another():
    model, chosen = small_model(), Fp8(stochastic=True)
    first, again, other = step(model, chosen, 7), step(model, chosen, 7), step(model, chosen, 8)
    assert first[0] == again[0] and first[0] != other[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert not np.array_equal(first[1][3], other[1][3])


def test_every_call_of_a_step_draws_numbers_of_its_own():
    with precision(Fp8(stochastic=True), seed=3):
        seeds = [products().recipe().seed for _ in range(5)]
    with precision(Fp8(stochastic=True), seed=4):
        seeds += [products().recipe().seed for _ in range(5)]
    assert len(set(seeds)) == 10
    assert Fp8().recipe().seed is None


@pytest.mark.parametrize("chosen", [Bfloat16(), Fp8(), Fp8(stochastic=True)])
def test_weight_gradients_can_wait(chosen):
    model = small_model()
    _, at_once = step(model, chosen)
    model.zero_grad()
    with tg.defer_weight_gradients() as later:
        step_without_reading(model, chosen)
    if isinstance(chosen, Fp8):  # in bfloat16 what is multiplied is no leaf but its rounding
        assert all(block.self_attn.o_proj.weight.grad is None for block in model.layers)
    later.run()
    for (name, leaf), grad in zip(model.named_leaves(), at_once, strict=True):
        assert np.array_equal(leaf.grad, grad), name


def step_without_reading(model, chosen):
    with precision(chosen, seed=0):
        model.loss(IDS, TARGETS, mtp_weight=0.3, balance_weight=1e-2).backward()


def test_variations_are_different_arithmetic():
    model = small_model()
    losses = {
        name: step(model, replace(Fp8(), **{name: value}))[0]
        for name, value in {
            "scaling": "tensor",
            "power_of_two": True,
            "stochastic": True,
            "accumulation": "tensor_core",
        }.items()
    }
    assert len({*losses.values(), step(model, Fp8())[0]}) == 5
    other = step(model, Fp8(gradient_format="e5m2"))
    assert other[0] == step(model, Fp8())[0] and not np.array_equal(other[1][3], step(model, Fp8())[1][3])


def test_precision_ends_with_its_block_even_by_an_error():
    with pytest.raises(RuntimeError, match="stop"), precision(Fp8()):
        with precision(Bfloat16()):
            assert isinstance(products(), Bfloat16)
        assert products() == Fp8()
        raise RuntimeError("stop")
    assert products() is EXACT


def test_infinities_are_counted_and_do_not_stop_the_step():
    model, met = small_model(), Infinities()
    step(model, Fp8(), infinities=met)
    assert met.count == 0
    model.layers[0].self_attn.o_proj.weight.data[3, 2] = np.inf
    loss, _ = step(model, Fp8(), infinities=met)
    assert np.isfinite(loss) and met.count == 2  # its weight is quantised forward and backward
    step(model, Fp8())  # counted where that is asked for, nowhere else
    assert met.count == 2
