"""How often a training step launches kernels and copies between host and device; docs/gpu.md has the counts.

They are those of the small network of tests/train/tiny.py: 2 layers (one of them with 4 experts) and one
module for multi-token prediction, a batch in one piece.
"""

import os
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import tinygrad_ds as tg
from layers import generate
from layers.precision import EXACT, Bfloat16, Fp8, precision
from tests import cupy_on_cpu
from tests.cuda.test_training import figures_of_loss, make_optimizer
from tests.train.test_trainer import next_work
from tests.train.tiny import tiny_model
from train.trainer import State, train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif("CUPY_ON_CPU" not in os.environ, reason="the tool of make test-cuda counts"),
]
GPU = Path(__file__).parent.parent.parent / "docs" / "gpu.md"


def counts_of_steps(kind, kernels="fused", sizes=(4,), around=nullcontext, moments=None):
    """What each step after the first two asked of the device."""
    seen = []
    with tg.using(device="cuda", kernels=kernels):
        model = tiny_model("float32")
        train(
            model,
            make_optimizer(kind, model, moments),
            next_work(model, sizes),
            figures_of_loss,
            State(total=32 * 5),
            learning_rate=lambda state: 0.01,
            bias_speed=lambda state: 0.01,
            around=around,
            after=[lambda state, record: seen.append(cupy_on_cpu.counts())],
        )
    steps = [{name: b[name] - a[name] for name in b} for a, b in zip(seen, seen[1:])]
    return steps[1:]


def written_down():
    """The rows of the table in docs/gpu.md: (optimizer, kernels, precision) -> numbers by column."""
    rows = re.findall(r"^\| (adamw|muon), (\w+)(?:, (\w+))? \|(.*)\|$", GPU.read_text(), flags=re.M)
    names = ("launches", "products", "reads", "read_bytes", "writes")
    return {
        (kind, kernels, precision): dict(
            zip(names, (int(cell.replace(",", "")) for cell in cells.split("|")))
        )
        for kind, kernels, precision, cells in rows
    }


PRODUCTS = {"": EXACT, "FP8": Fp8(), "bfloat16": Bfloat16()}


def test_what_is_written_down_is_all():
    rest = [("adamw", "fused", "FP8"), ("adamw", "fused", "bfloat16")]
    assert [*written_down()] == [
        *((kind, kernels, "") for kind in ("adamw", "muon") for kernels in ("fused", "reference")),
        *rest,
    ]


@pytest.mark.parametrize("row", written_down(), ids=" ".join)
def test_counts_are_those_written_down(row):
    """Each table of addresses, two copies, stays where gradients come to lie where they lay before."""
    expected, (kind, kernels, kept) = written_down()[row], row
    options = {"around": lambda: precision(PRODUCTS[kept]), "moments": "bfloat16" if kept == "FP8" else None}
    for step in counts_of_steps(kind, kernels, **options):
        assert {name: step[name] for name in expected if name != "writes"} == {
            name: count for name, count in expected.items() if name != "writes"
        }
        assert expected["writes"] - step["writes"] in (0, 2, 4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("sizes", [(4,), (1, 3), (1, 1, 2)])
def test_host_reads_one_small_array_in_a_step(kind, sizes):
    """However many micro-batches: norm, decision, loss and its part, and the loads of two layers' experts."""
    for step in counts_of_steps(kind, sizes=sizes):
        assert step["reads"] == 1
        assert step["read_bytes"] == 8 * (2 + 2 + 2 * 4)


def test_host_reads_the_logits_alone_for_a_new_token():
    with tg.using(device="cuda"):
        model = tiny_model("float32")
        reads = []
        options = {"max_new_tokens": 6, "on_token": lambda row, token: reads.append(cupy_on_cpu.counts())}
        generate(model, [np.array([1, 2, 3])], **options)
    per_token = [b["reads"] - a["reads"] for a, b in zip(reads, reads[1:])]
    assert per_token[1:] == [1] * len(per_token[1:])
