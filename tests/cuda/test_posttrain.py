"""The commands of post-training on the device: they write what they write on the host."""

import json

import cupy
import pytest

import tinygrad_ds as tg
from posttrain.__main__ import main
from posttrain.learning import Learning
from posttrain.models import Speaker
from posttrain.sft import FineTuning
from posttrain.stage import Start, has_begun, restored, run_stage
from tests.posttrain.small import make_home, network, sequences, vocabulary
from tinygrad_ds import settings
from train.trainer import TrainingStopped

pytestmark = pytest.mark.cuda
EVAL = "--prompts 2 --samples 4 --temperature 0.3"
KD = "--steps 2 --batch 4 --teacher"
GRPO = "--steps 2 --prompts 2 --group 2 --beta 0.1 --updates 2"


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """The same small road gone on both devices: a folder for each."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for device in ("cpu", "cuda"):
            home = made[device] = make_home(tmp_path_factory.mktemp(device))
            chains = home / "chains.jsonl"
            chains.write_text(chains.read_text().replace(" <answer>", " <think> q </think> <answer>"))
            task = f"--task {home}/task.jsonl --max-new-tokens 10"
            for line in (
                f"sft {home}/model {home}/chains.jsonl --out {home}/sft --steps 25 --batch 8 --lr 0.02",
                f"eval {home}/sft {task} {EVAL} --json {home}/eval.json",
                f"reject {home}/sft {task} --out {home}/kept.jsonl --prompts 4 --samples 2 --temperature 0.3",
                f"grpo {home}/sft {task} --out {home}/grpo {GRPO}",
                f"grpo --resume {home}/grpo --steps 4",
                f"distill {home}/model {home}/chains.jsonl --out {home}/kd {KD} {home}/sft",
            ):
                patch.setattr("sys.argv", ["posttrain", *line.split(), "--device", device])
                main()
                assert settings.current().device == "cpu"
    return made


def records(folder):
    """The metrics of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("run", "steps"), [("sft", 25), ("grpo", 4), ("kd", 2)])
def test_losses_are_those_of_the_host(homes, run, steps):
    here, there = (records(homes[device] / run) for device in ("cpu", "cuda"))
    assert len(here) == len(there) == steps
    for one, other in zip(here, there):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-3, abs=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-2, abs=1e-3)


def test_answers_are_those_of_the_host(homes):
    """Sampled with the same random numbers from nearly the same distribution."""
    here, there = (json.loads((homes[device] / "eval.json").read_text()) for device in ("cpu", "cuda"))
    assert here["pass_1"]["value"] > 0.6
    for name in ("pass_1", "think_rate"):
        if name in here:
            assert there[name] == here[name]
    here, there = ((homes[device] / "kept.jsonl").read_text() for device in ("cpu", "cuda"))
    assert here and here == there


@pytest.mark.parametrize("multiple", [1, 2])
def test_a_stage_that_runs_out_of_memory_says_so_and_leaves_a_checkpoint(tmp_path, multiple):
    """But between two updates that share a batch of completions there can be none."""

    class Greedy(FineTuning):
        def loss(self, model, part, count):
            if len(steps) == 1:
                cupy.empty(1 << 50, "u1")
            return super().loss(model, part, count)

    steps = []
    with tg.using(device="cuda"):
        start = Start.of(Speaker(network(dtype="float32"), vocabulary()), Learning(), steps=2)
        subject = Greedy(sequences([(3, 4), (1, 2)]), 16, batch=2)
        with pytest.raises(
            TrainingStopped, match="after step 1: .*weights .*Remedy: lower micro_batch"
        ) as caught:
            run_stage(
                tmp_path,
                start,
                subject,
                after=[lambda state, record: steps.append(record)],
                multiple=multiple,
            )
    there = {"step-00000001"} if multiple == 1 else set()
    assert {path.name for path in (tmp_path / "checkpoints").glob("step*")} == there
    assert ("step-00000001 is whole" if there else "no checkpoint yet") in str(caught.value)


@pytest.mark.parametrize("where", ["next_work", "step", "after"])
def test_memory_that_runs_out_beside_the_gradient_is_told_too(tmp_path, where):
    """The checkpoint is of a whole step; where the optimizer had begun to move the weights there is none."""
    before, calls = [], []

    def exhaust():
        calls.append(where)
        if len(calls) == 2:
            cupy.empty(1 << 50, "u1")

    class Greedy(FineTuning):
        def next_work(self, state):
            before[:] = [leaf.numpy().copy() for leaf in model.parameters()]
            if where == "next_work":
                exhaust()
            return super().next_work(state)

    def after(state, record):
        if where == "after":
            before[:] = [leaf.numpy().copy() for leaf in model.parameters()]
            exhaust()

    with tg.using(device="cuda"):
        model = network(dtype="float32")
        start = Start.of(Speaker(model, vocabulary()), Learning(), steps=3)
        step = start.optimizer.step

        def moved(*control):
            step(*control)
            if where == "step":
                exhaust()

        start.optimizer.step = moved
        subject = Greedy(sequences([(3, 4), (1, 2)]), 16, batch=2)
        done = 2 if where == "after" else 1
        with pytest.raises(
            TrainingStopped, match=f"after step {done}: .*Remedy: lower micro_batch"
        ) as caught:
            run_stage(tmp_path, start, subject, after=[after])
        told = str(caught.value)
        if where == "step":
            assert "while the optimizer moved the weights" in told and told.endswith("no checkpoint yet")
            assert not has_begun(tmp_path)
            return
        assert told.endswith(f"step-{done:08d} is whole")
        again = restored(tmp_path, Learning(), 3)
        assert again.state.step == done
        for old, leaf in zip(before, again.speaker.model.parameters(), strict=True):
            assert (leaf.numpy() == old).all()
