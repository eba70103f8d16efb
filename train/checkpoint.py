"""Checkpoints: everything that a bit-exact resume needs, written aside and renamed, so never half of one."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from layers import DeepSeekModel, save_pretrained
from layers.tensor_file import read_header
from layers.weights import open_pretrained
from train.errors import UserError
from train.trainer import Record, State

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


class Checkpoints:
    """The newest `keep` checkpoints of a run, each a folder: `step-00000200`.

    Each holds the weights as a published checkpoint (config.json, model.safetensors; layers.load_pretrained
    reads it), the optimizer's state and the run's. beside: other networks that a resume needs, each in a
    folder of its name.
    """

    def __init__(
        self, folder: Path, keep: int = 2, beside: Mapping[str, DeepSeekModel] | None = None
    ) -> None:
        self.folder, self.keep, self.beside = folder, keep, beside or {}

    def save(self, model: DeepSeekModel, optimizer: Any, state: State) -> Path:
        """Write a checkpoint and delete the oldest. Killed at any moment, it leaves the others whole."""
        final = self.folder / f"step-{state.step:08d}"
        if final.exists():  # the same step of the same run is the same state
            return final
        aside = self.folder / f".{final.name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_pretrained(model, aside)
        for name, other in self.beside.items():
            (aside / name).mkdir()
            save_pretrained(other, aside / name)
        save_file(optimizer.state_dict(), aside / OPTIMIZER)
        fields = vars(state) | {"rng": state.rng.bit_generator.state}
        (aside / STATE).write_text(json.dumps(fields), encoding="utf-8")
        for path in [*aside.rglob("*"), aside]:
            sync(path)
        aside.rename(final)
        sync(self.folder)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def all(self) -> list[Path]:
        """The folders of all whole checkpoints, the newest last."""
        return sorted(self.folder.glob("step-*"))

    def told(self) -> str:
        """What a run that stops has left, in words."""
        return f"{kept[-1]} is whole" if (kept := self.all()) else "no checkpoint yet"

    def latest(self) -> Path:
        """The newest checkpoint. Raises UserError if there is none."""
        if not (found := self.all()):
            raise UserError(
                f"{self.folder} holds no checkpoint: the run ended before its first, so start it anew"
            )
        return found[-1]


def load_model(folder: Path) -> DeepSeekModel:
    """The network of a checkpoint. Raises UserError where it is damaged."""
    model, fill = open_model(folder)
    model.allocate()
    fill(model)
    return model


def open_model(folder: Path) -> tuple[DeepSeekModel, Callable[[DeepSeekModel], None]]:
    """The network of a checkpoint, hollow, and what reads it or any part of it. Both raise UserError."""
    try:
        model, read = open_pretrained(folder, dtype="float32")
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error

    def fill(part: DeepSeekModel) -> None:
        try:
            read(part)
        except (OSError, ValueError) as error:
            raise damaged(folder, error) from error

    return model, fill


def load_state(folder: Path, optimizer: Any) -> State:
    """The run's state of a checkpoint; the optimizer's goes into `optimizer`. Raises UserError.

    Only what `optimizer` takes is read: a rank of several has its own part alone in memory.
    """
    try:
        fields = json.loads((folder / STATE).read_text("utf-8"))
        arrays = {name: stored.map() for name, stored in read_header(folder / OPTIMIZER).items()}
        rng = np.random.default_rng()
        rng.bit_generator.state = fields["rng"]
        state = State(**fields | {"rng": rng})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error
    optimizer.load_state_dict(arrays)
    return state


def damaged(folder: Path, error: Exception) -> UserError:
    """The sentence for a checkpoint that cannot be read."""
    return UserError(f"{folder} is damaged ({error}): delete it, and the checkpoint before it is taken")


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or a folder's list."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class SaveEvery:
    """After a step: save each `steps` steps, and at the end of the run."""

    def __init__(self, checkpoints: Checkpoints, model: DeepSeekModel, optimizer: Any, steps: int) -> None:
        self.checkpoints, self.model, self.optimizer, self.steps = checkpoints, model, optimizer, steps

    def due(self, state: State) -> bool:
        """Whether it is time."""
        return state.step % self.steps == 0 or state.done >= state.total

    def __call__(self, state: State, record: Record) -> None:
        """Save if it is time. It must come after the metrics, whose length it records."""
        if self.due(state):
            with state.phase("checkpoints"):
                self.checkpoints.save(self.model, self.optimizer, state)
