"""What `make gpu-check` measures and writes, with sizes that a test can wait for."""

import subprocess
import sys

import pytest

from benchmarks import gpu
from tinygrad_ds.device import chosen

pytestmark = pytest.mark.cuda
SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "intermediate_size": 20,
    "moe_intermediate_size": 10,
    "max_position_embeddings": 128,
}


def test_report_names_card_figures_and_verdict(monkeypatch):
    monkeypatch.setattr(gpu, "CONFIG", gpu.CONFIG | SMALL)
    monkeypatch.setattr(gpu, "BATCH", 1)
    monkeypatch.setattr(gpu, "TIME", 8)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "sgemm_rate", lambda: 1e9)
    with chosen("cuda"):
        machine, figures = gpu.machine(), gpu.figures()
    failed = subprocess.CompletedProcess([], 1, "FAILED here")
    text = gpu.page(machine, failed, figures)
    for word in (
        machine["card"],
        "tokens/s",
        "share of the sgemm rate",
        "peak memory",
        "PyTorch",
        "SOME FAILED",
    ):
        assert word in text
    assert "FAILED here" in text and "Tests: not run" in gpu.page(machine, None, figures)


def test_without_a_gpu_it_says_so_and_ends_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stderr.startswith('error: device "cuda" needs')
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("command", ["train", "layers inspect x", "lab list", "posttrain eval x"])
def test_commands_say_what_is_missing_and_end_with_2(command):
    module, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--device", "cuda"],
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and done.stderr.startswith('error: device "cuda" needs'), done.stderr
    assert done.stderr.count("\n") == 1
