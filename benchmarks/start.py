"""How long a start takes: importing, a new process to its first step, and a first step that compiles."""

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.conductor import spread
from benchmarks.speed import Say

IMPORT = "import time; t = time.perf_counter(); import tinygrad_ds; print(time.perf_counter() - t)"
STEP = """
import json
from benchmarks.ours import Ours
from benchmarks.worker import CONFIG
from tinygrad_ds.kernels import progress
progress.listener = print
ours = Ours(json.loads(CONFIG.read_text()), "fused")
ours.build()
ours.train(8, 256)
"""


def run(program: str, **environment: str) -> tuple[str, float]:
    """What a new Python process prints, and its seconds from start to end."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout, time.perf_counter() - began


def start(rounds: int, say: Say) -> dict[str, Any]:
    """Seconds to import the engine, and of a process that makes a step of batch 8 x 256, kernels on disk."""
    say("kernels on disk")
    run(STEP)
    imports, steps = [], []
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        imports.append(float(run(IMPORT)[0]))
        steps.append(run(STEP)[1])
    return {"import": spread(imports), "process to the end of its first step": spread(steps)}


def cold(say: Say) -> dict[str, Any]:
    """The first step where no kernel is compiled yet: its seconds, and what it says meanwhile."""
    say("compiling (up to a minute and a half)")
    with tempfile.TemporaryDirectory() as folder:
        said, seconds = run(STEP, NUMBA_CACHE_DIR=folder)
    return {"seconds": seconds, "says": said.splitlines()}
