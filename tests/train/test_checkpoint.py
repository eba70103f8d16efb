import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from layers import load_pretrained
from tests.train.test_trainer import next_work, run
from tests.train.tiny import tiny_model, with_gradient
from train import checkpoint
from train.checkpoint import Checkpoints, SaveEvery, load_model, load_state
from train.errors import UserError
from train.muon import Muon
from train.optimizer import AdamW
from train.trainer import State

ROOT = Path(__file__).parents[2]


def stepped(seed=0):
    """A model and an optimizer one step under way."""
    model = with_gradient(tiny_model("float32", seed))
    optimizer = AdamW(model, lr=0.01)
    optimizer.step()
    return model, optimizer


def state_at(step):
    return State(total=100.0, step=step, done=2.0 * step)


@pytest.mark.parametrize("make", [lambda model: AdamW(model, lr=0.01), lambda model: Muon(model)])
def test_resumed_run_is_the_same_run_to_the_bit(tmp_path, make):
    def options(model, records):
        speeds = {"bias_speed": lambda state: 0.01, "learning_rate": lambda state: 0.01 / (1 + state.step)}
        return speeds | {
            "next_work": next_work(model, (2, 2)),
            "after": [lambda s, r: records.append(r["loss"])],
        }

    straight, losses = tiny_model("float32"), []
    run(straight, make(straight), 160, **options(straight, losses))

    model, seen = tiny_model("float32"), []
    optimizer = make(model)
    state = run(model, optimizer, 96, **options(model, seen))
    state.rng.random(3)
    folder = Checkpoints(tmp_path).save(model, optimizer, state)
    again = load_model(folder)
    optimizer = make(again)
    loaded = load_state(folder, optimizer)
    assert loaded.rng.random() == state.rng.random() and loaded.phases == state.phases
    loaded.total = 160
    run(again, optimizer, 160, state=loaded, **options(again, seen))
    assert seen == losses
    for (name, a), (_, b) in zip(again.named_parameters(), straight.named_parameters()):
        assert a.data.tobytes() == b.data.tobytes(), name
    for (name, a), (_, b) in zip(again.named_buffers(), straight.named_buffers()):
        assert a.data.tobytes() == b.data.tobytes(), name
    assert any(bias.data.any() for _, bias in again.named_buffers())


def test_checkpoint_is_a_published_one(tmp_path):
    model, optimizer = stepped()
    folder = Checkpoints(tmp_path).save(model, optimizer, state_at(1))
    ids = np.arange(8)[None]
    assert (load_pretrained(folder)(ids).data == model(ids).data).all()


def test_the_newest_are_kept(tmp_path):
    model, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (9, 10, 100):
        checkpoints.save(model, optimizer, state_at(step))
    assert [path.name for path in checkpoints.all()] == ["step-00000010", "step-00000100"]
    assert checkpoints.latest().name == "step-00000100"


def test_save_every_few_steps_and_at_the_end(tmp_path):
    model, optimizer = stepped()
    save = SaveEvery(Checkpoints(tmp_path, keep=9), model, optimizer, steps=3)
    for step in range(1, 9):
        save(State(total=8.0, step=step, done=float(step)), {})
    assert [int(path.name[5:]) for path in save.checkpoints.all()] == [3, 6, 8]


KILLED = """
import os, sys
from tests.train.test_checkpoint import stepped, state_at
from train import checkpoint
model, optimizer = stepped(seed=1)
calls = []
def dying(real):
    def call(*args):
        calls.append(1)
        if len(calls) == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return real(*args)
    return call
for name in ("save_pretrained", "save_file", "sync"):
    setattr(checkpoint, name, dying(getattr(checkpoint, name)))
checkpoint.Checkpoints(checkpoint.Path(sys.argv[1])).save(model, optimizer, state_at(2))
"""


@pytest.mark.parametrize("moment", [1, 2, 3, 5])
def test_kill_while_saving_leaves_the_last_good_one(tmp_path, moment):
    """SIGKILL before the weights, before the optimizer's state, and among the writes to disk."""
    model, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path)
    good = checkpoints.save(model, optimizer, state_at(1))
    environment = os.environ | {"TINYGRAD_DS_KERNELS": "reference"}
    died = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(moment)], cwd=ROOT, env=environment)
    assert died.returncode == -9
    assert checkpoints.all() == [good] and len(list(tmp_path.iterdir())) == 2
    assert load_state(checkpoints.latest(), optimizer).step == 1
    assert checkpoints.save(model, optimizer, state_at(2)) == checkpoints.latest()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_damaged_checkpoint_says_so(tmp_path, name, share):
    model, optimizer = stepped()
    folder = Checkpoints(tmp_path).save(model, optimizer, state_at(1))
    os.truncate(folder / name, int(share * (folder / name).stat().st_size))
    with pytest.raises(UserError, match=f"{folder} is damaged .*delete it"):
        load_state(folder, AdamW(load_model(folder), lr=0.1))


def test_run_without_checkpoint_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        Checkpoints(tmp_path / "nowhere").latest()


def test_full_disk_leaves_the_last_good_one(tmp_path, monkeypatch):
    model, optimizer = stepped()
    checkpoints = Checkpoints(tmp_path)
    good = checkpoints.save(model, optimizer, state_at(1))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(model, optimizer, state_at(2))
    assert checkpoints.all() == [good]
