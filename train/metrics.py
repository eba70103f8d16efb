"""Metrics: one JSON line for every step, in the run's folder."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from train.trainer import Record, State


class Metrics:
    """Appends records to a file of JSON lines. Opened at `position`, it cuts off what was written after that.

    A run that was killed and resumed from its last checkpoint so has every step once.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        path.touch()
        os.truncate(path, min(position, path.stat().st_size))
        self.file = path.open("a", encoding="utf-8")

    def __call__(self, state: State, record: Record) -> None:
        """Write the record of a step."""
        self.write(record)
        state.metrics = self.file.tell()

    def write(self, record: Record) -> None:
        """Write one line, at once."""
        self.file.write(json.dumps(plain(record)) + "\n")
        self.file.flush()


def read_metrics(path: Path) -> list[Record]:
    """All records of a file; a last line that was cut short, as by a kill, is left out."""
    lines = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def plain(value: Any) -> Any:
    """What JSON can hold: arrays as lists, numbers with six digits, what is not finite as null."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.integer) else value
