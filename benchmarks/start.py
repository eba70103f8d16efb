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
ours.train({batch}, {time})
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
    """Seconds to import the engine, and of a process with kernels on disk, to the end of a small step."""
    small = STEP.format(batch=1, time=16)  # so small that what is measured is the way to it
    say("kernels on disk")
    run(small)
    imports, steps = [], []
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        imports.append(float(run(IMPORT)[0]))
        steps.append(run(small)[1])
    return {"import": spread(imports), "process to the end of a first step of 16 tokens": spread(steps)}


def cold(say: Say) -> dict[str, Any]:
    """A process with a step of batch 8 x 256 where no kernel is compiled yet: seconds, and what it says."""
    say("compiling (up to a minute and a half)")
    with tempfile.TemporaryDirectory() as folder:
        said, seconds = run(STEP.format(batch=8, time=256), NUMBA_CACHE_DIR=folder)
    return {"seconds": seconds, "says": said.splitlines()}
