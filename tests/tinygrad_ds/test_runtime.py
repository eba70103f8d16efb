"""Threads that wait do so asleep, whoever loads BLAS first."""

import os
import subprocess
import sys

import pytest

from tinygrad_ds import runtime

ASLEEP = 0.004  # seconds of processor time that a sleeping process stays below

# How long the process computes while it does nothing, after products by both threads of BLAS.
IDLE = """
{first}
import {second}
import time
import numpy as np
from threadpoolctl import threadpool_info
a = np.random.default_rng(0).normal(size=(400, 300))
assert np.allclose(a @ a.T, np.einsum("ik,jk->ij", a, a))
for _ in range(5):
    a @ a.T
before = time.process_time()
time.sleep(0.1)
print(time.process_time() - before)
print(*(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"))
"""


def idle(first, second):
    """Seconds of processor time in 0.1 s of waiting, and the threads of each BLAS."""
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    done = subprocess.run(
        [sys.executable, "-c", IDLE.format(first=first, second=second)],
        env=kept | {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, threads = done.stdout.splitlines()
    return float(seconds), threads


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="BLAS has one thread on one core")
@pytest.mark.parametrize(
    "first", ["import numpy", "import numpy; numpy.ones((500, 500)) @ numpy.ones((500, 500))", ""]
)
def test_idle_threads_of_blas_sleep_whether_numpy_came_first_or_not(first):
    seconds, threads = idle(first, "tinygrad_ds")
    assert seconds < ASLEEP
    assert threads == "2"


@pytest.mark.parametrize(
    ("set_by_user", "threads", "modules", "restarted"),
    [
        (None, 1, {"numpy"}, True),
        (None, 1, set(), False),  # BLAS is yet to read the environment
        ("26", 1, {"numpy"}, False),
        (None, 2, {"numpy"}, False),  # the other one may be in a product
        (None, 5, {"numpy", "ipykernel"}, True),  # the threads of a notebook compute nothing
    ],
)
def test_when_blas_is_told_anew(set_by_user, threads, modules, restarted, monkeypatch):
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    if set_by_user:
        monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", set_by_user)
    calls = []
    monkeypatch.setattr(runtime, "restart_openblas", lambda: calls.append(True))
    monkeypatch.setattr(runtime.threading, "active_count", lambda: threads)
    monkeypatch.setattr(runtime.sys, "modules", dict.fromkeys(modules))
    runtime.quiet_idle_threads()
    monkeypatch.undo()
    assert bool(calls) == restarted


def test_a_value_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "9")
    runtime.quiet_idle_threads()
    assert os.environ["OPENBLAS_THREAD_TIMEOUT"] == "9"
