import json

import numpy as np
import pytest

from train.metrics import Metrics, plain, read_metrics
from train.trainer import State


def test_records_come_back_as_they_went_in(tmp_path):
    path, state = tmp_path / "metrics.jsonl", State(total=10)
    metrics = Metrics(path)
    metrics(state, {"step": 1, "loss": 2.5, "loads": {"a": np.array([1, 2])}})
    metrics(state, {"step": 2, "loss": np.float32(1.5), "sample": "zwölf\n"})
    assert read_metrics(path) == [
        {"step": 1, "loss": 2.5, "loads": {"a": [1, 2]}},
        {"step": 2, "loss": 1.5, "sample": "zwölf\n"},
    ]
    assert state.metrics == path.stat().st_size


def test_reopened_at_a_position_it_forgets_what_came_after(tmp_path):
    path, state = tmp_path / "metrics.jsonl", State(total=10)
    metrics = Metrics(path)
    metrics(state, {"step": 1})
    kept = state.metrics
    metrics(state, {"step": 2})
    Metrics(path, kept)(state, {"step": 2, "again": True})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "again": True}]


def test_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")])
def test_what_json_cannot_hold_is_null(number):
    assert json.loads(json.dumps(plain({"x": [number, 1.0]}), allow_nan=False)) == {"x": [None, 1.0]}
