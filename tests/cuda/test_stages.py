"""FP8, fine-tuning, reinforcement and distillation: their steps on the device are those on the host."""

import numpy as np
import pytest

import tinygrad_ds as tg
from layers.precision import Bfloat16, Fp8, precision
from posttrain.distill import Distillation, likeliest
from posttrain.grpo import Objective, Reinforcement
from posttrain.sft import FineTuning
from tests.cuda.test_training import arrays_of, figures_of_loss
from tests.posttrain.small import HASH, Letters, network, sequences, vocabulary
from tests.train.test_trainer import next_work
from tests.train.tiny import tiny_model
from tinygrad_ds.device import device_of, place
from tinygrad_ds.ops.quantize import Infinities, count_infinities
from train import AdamW
from train.trainer import State, accumulate, train

pytestmark = pytest.mark.cuda
EXAMPLES = sequences([(3, 4), (1, 2), (6, 5), (2, 1)])


def on_both(make, kernels, steps=2, tolerance=1e-8, **options):
    """Train what `make` gives (model, next_work, loss, after) on host and device; both must end alike."""
    ended = []
    for device, chosen in (("cpu", "reference"), ("cuda", kernels)):
        with tg.using(device=device, kernels=chosen):
            model, work, loss, after = make()
            records = []
            train(
                model,
                AdamW(model, lr=0.0),
                work,
                loss,
                State(total=work(State(total=1.0)).size * steps),
                learning_rate=lambda state: 0.003,
                after=[*after, lambda state, record, add=records.append: add(record)],
                **options,
            )
            assert {device_of(leaf.data) for leaf in model.parameters()} == {device}
            ended.append((arrays_of(model), records))
    (here, records), (there, records_there) = ended
    assert len(records) == steps
    for name, array in here.items():
        scale = max(np.abs(array).max(), 1.0)
        np.testing.assert_allclose(there[name], array, rtol=0, atol=tolerance * scale, err_msg=name)
    for one, other in zip(records, records_there, strict=True):
        for number, value in one.items():
            if isinstance(value, float) and number != "seconds":
                assert other[number] == pytest.approx(value, rel=1e-6, abs=1e-9), number


@pytest.mark.parametrize("kernels", ["reference", "fused"])
@pytest.mark.parametrize("products", [Fp8(), Fp8(stochastic=True, power_of_two=True), Bfloat16()])
def test_rounded_products(products, kernels):
    """In float64, so that both sides round the same numbers: the formats are coarse, not the comparison."""

    def make():
        model = tiny_model()
        return model, next_work(model, (2, 2)), figures_of_loss, []

    step = iter(range(100))
    on_both(make, kernels, tolerance=1e-6, around=lambda: precision(products, seed=next(step) % 2))


@pytest.mark.parametrize("kernels", ["reference", "fused"])
def test_infinities_are_counted_on_the_device(kernels):
    """As often as on the host, and to count them reads nothing."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((9, 140), (130, 140), (9, 130))]
    arrays[0][2, 3], arrays[1][5, 6], arrays[2][7, 8], arrays[0][4, 100] = np.inf, -np.inf, np.inf, np.inf
    counts = {}
    for device in ("cpu", "cuda"):
        met = Infinities(2)
        with tg.using(device=device, kernels=kernels), count_infinities(met):
            x, weight, g = (place(array) for array in arrays)
            for recipe in (tg.Fp8Recipe(), tg.Fp8Recipe(cache_format="e5m6", power_of_two=True)):
                leaves = tg.Tensor(x, requires_grad=True), tg.Tensor(weight, requires_grad=True)
                tg.fp8_linear(*leaves, recipe=recipe).backward(g)
                tg.fp8_swiglu_linear(leaves[0], leaves[1][:, :70], recipe=recipe)
            tg.quantize(x)
        assert device_of(met.count) == device
        counts[device] = int(met.taken())
    assert counts["cpu"] == counts["cuda"] > 2 + 4 and met.count == 0


def told_of_a_step(device):
    """The record of a step with an infinite weight."""
    met, records = Infinities(), []

    def gradients(model, work, loss, state):
        return accumulate(model, work, loss, state) | {"infinities": met.taken()}

    with tg.using(device=device):
        model = tiny_model("float32")
        model.layers[0].self_attn.o_proj.weight.data[3, 2] = np.inf
        train(
            model,
            AdamW(model, lr=0.0),
            next_work(model, (2, 2)),
            figures_of_loss,
            State(total=32),
            learning_rate=lambda state: 0.0,
            gradients=gradients,
            around=lambda: precision(Fp8(), infinities=met),
            after=[lambda state, record: records.append(record)],
        )
    return records[0]


def test_a_step_tells_its_infinities():
    """Two micro-batches quantise the weight forward and backward."""
    assert [told_of_a_step(device)["infinities"] for device in ("cpu", "cuda")] == [4.0, 4.0]


def test_fine_tuning():
    def make():
        subject = FineTuning(EXAMPLES, 16, batch=4, micro_batch=2)
        return network(), subject.next_work, subject.loss, []

    on_both(make, "fused")


@pytest.mark.parametrize("aggregate", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("replay", [False, True])
def test_reinforcement(aggregate, replay):
    """Sampled, judged and learnt from: the same tokens, rewards and weights."""

    def make():
        model, reference = network(), network(seed=1)
        objective = Objective(
            prompts=3,
            group=4,
            max_new_tokens=5,
            beta=0.1,
            aggregate=aggregate,
            routing_replay=replay,
            micro_batch=6,
        )
        subject = Reinforcement(model, vocabulary(), Letters(), [HASH], objective, reference)
        return model, subject.next_work, subject.loss, [subject.after]

    on_both(make, "fused", tolerance=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_distillation(beta):
    def make():
        teacher = likeliest(network(seed=2), EXAMPLES, k=8)
        subject = Distillation(EXAMPLES, 16, batch=4, beta=beta, temperature=2.0).taught_by(teacher)
        return network(), subject.next_work, subject.loss, []

    on_both(make, "fused", tolerance=1e-6)
