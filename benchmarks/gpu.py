"""`make gpu-check`: the tests and a benchmark on an NVIDIA GPU, written to gpu-report.md for an issue.

    python -m benchmarks.gpu [--out FILE] [--no-tests]

Needs a card with its driver, and CuPy: pip install "tinygrad_ds[cuda12]" or "tinygrad_ds[cuda13]". Times are
of the host around work that the device has finished; the share of the card's own sgemm rate is what can be
compared from card to card.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter as clock
from typing import Any

import numpy as np

import tinygrad_ds as tg
from benchmarks.limits import per_token
from benchmarks.ours import Ours
from tinygrad_ds.device import DeviceMissing, chosen, here

CONFIG = json.loads((Path(__file__).parent / "config.json").read_text())
ROUNDS = 7
BATCH, TIME = 8, 256


def main() -> None:
    """Test, measure, write. Exit code 2 where there is no GPU to ask, 1 where a test fails."""
    asked = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    asked.add_argument("--out", type=Path, default=Path("gpu-report.md"))
    asked.add_argument("--no-tests", action="store_true", help="measure alone")
    given = asked.parse_args()
    try:
        with chosen("cuda"):
            tests = None if given.no_tests else run_tests()
            report = page(machine(), tests, figures())
    except DeviceMissing as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    given.out.write_text(report)
    print(report)
    print(f"{given.out} is ready to be attached to an issue")
    if tests is not None and tests.returncode:
        sys.exit(1)


def run_tests() -> subprocess.CompletedProcess:
    """All tests that ask for the device, on the device."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "cuda", "tests/cuda"]
    return subprocess.run(command, capture_output=True, text=True)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cupy = here()
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "card": properties["name"].decode(),
        "memory": f"{properties['totalGlobalMem'] / 1e9:.1f} GB",
        "compute capability": f"{properties['major']}.{properties['minor']}",
        "driver": str(cupy.cuda.runtime.driverGetVersion()),
        "runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
        "CuPy": cupy.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
    }


def seconds(work: Callable[[], Any]) -> float:
    """The median of some runs of `work`, each until the device is done."""
    cupy, taken = here(), []
    for _ in range(ROUNDS):
        cupy.cuda.Device().synchronize()
        began = clock()
        work()
        cupy.cuda.Device().synchronize()
        taken.append(clock() - began)
    return float(np.median(taken))


def sgemm_rate(size: int = 4096) -> float:
    """Floating-point operations per second of a float32 product, as cuBLAS does it."""
    a = here().ones((size, size), dtype=np.float32)
    a @ a  # loads what it needs
    return 2 * size**3 / seconds(lambda: a @ a)


def figures() -> dict[str, str]:
    """Speed of training and decoding, memory, and the same by PyTorch where it is installed."""
    rate, model = sgemm_rate(), Ours(CONFIG, "fused")
    model.build()
    for _ in range(3):
        model.train(BATCH, TIME)
    pool = here().get_default_memory_pool()
    pool.free_all_blocks()
    step = seconds(lambda: model.train(BATCH, TIME))
    tokens, flops = BATCH * TIME, 6.0 * sum(per_token(CONFIG, TIME).values())  # 2 forward, 4 backward
    model.decode(1, TIME, 8)
    one_token = model.decode(1, TIME, 64)["seconds_per_step"]
    with tg.using(kernels="reference"):
        slow = Ours(CONFIG, "reference")
        slow.build()
        slow.train(BATCH, TIME)
        reference = seconds(lambda: slow.train(BATCH, TIME))
    return {
        "sgemm": f"{rate / 1e12:.2f} TFLOP/s",
        "training": f"{tokens / step:,.0f} tokens/s ({1e3 * step:.1f} ms a step of {BATCH} x {TIME})",
        "share of the sgemm rate": f"{flops * tokens / step / rate:.1%}",
        "training, reference kernels": f"{tokens / reference:,.0f} tokens/s",
        "peak memory of a step": f"{pool.total_bytes() / 1e6:,.0f} MB",
        "decoding, one sequence": f"{1 / one_token:,.0f} tokens/s",
        "PyTorch, training": torch_training(),
    }


def torch_training() -> str:
    """The same network by transformers on the same card."""
    try:
        import torch

        from benchmarks.peers.transformers_peer import Transformers
    except ImportError:
        return "not installed"
    if not torch.cuda.is_available():
        return "installed without CUDA"
    torch.set_default_device("cuda")
    peer = Transformers(CONFIG, compiled=False)
    peer.build()
    peer.train(BATCH, TIME)
    return f"{BATCH * TIME / seconds(lambda: peer.train(BATCH, TIME)):,.0f} tokens/s"


def page(machine: dict[str, str], tests: subprocess.CompletedProcess | None, found: dict[str, str]) -> str:
    """The report, as Markdown."""
    verdict = "not run" if tests is None else ("all passed" if tests.returncode == 0 else "SOME FAILED")
    lines = ["# GPU report", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in machine.items()), ""]
    lines += ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.items())]
    lines += ["", f"Tests: {verdict}.", ""]
    if tests is not None:
        lines += ["```", *tests.stdout.splitlines()[-40:], "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
