"""How the tests run: one thread to a worker, the same examples each time, and where the seconds went."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import settings

# Imported before NumPy and numba load, because the package sets what their pools of threads read then.
from tests import cupy_on_cpu
from tinygrad_ds.runtime import set_threads

if os.environ.get("CUPY_ON_CPU"):  # `make test-cuda`: CuPy without a GPU, before anything imports it
    cupy_on_cpu.install()

# Examples drawn by hypothesis are the same in every run, so that a change is judged by itself and not by
# luck; `make test-all` draws new ones, with a seed that it prints. No deadline: a first call may compile.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("ci")


def _has_cuda() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return cupy.cuda.is_available()


def _has_mpi() -> bool:
    return (
        importlib.util.find_spec("mpi4py") is not None
        and shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is not None
    )


NEEDS = {
    "cuda": (_has_cuda, "needs CuPy and a CUDA device"),
    "mpi": (_has_mpi, "needs mpi4py and mpiexec"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    for mark, (available, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config: pytest.Config) -> None:
    """One thread to a worker where there are several workers, and the clock for the closing line."""
    if hasattr(config, "workerinput"):
        set_threads(1)
    config.pluginmanager.register(Seconds(config))


class Seconds:
    """Seconds of set-up, compiling and testing, told apart.

    Set-up is what make needed for the environment, plus pytest's time until the first test begins. Compiling
    is measured in every worker, by numba's own events, and sent to the controller at the end.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.started = perf_counter()
        from numba.core import event

        self.config = config
        self.starting: float | None = None
        self.testing = 0.0
        self.compiling = 0.0
        self.listener = event.TimingListener()
        event.register("numba:compile", self.listener)

    def compiled_here(self) -> float:
        return self.listener.duration if self.listener.done else 0.0

    def pytest_runtest_logstart(self) -> None:
        if self.starting is None:
            self.starting = perf_counter() - self.started

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.testing += report.duration

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["compiling"] = self.compiled_here()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        self.compiling += getattr(node, "workeroutput", {}).get("compiling", 0.0)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        compiling = self.compiling + self.compiled_here()
        testing = max(self.testing - compiling, 0.0)
        setup = float(os.environ.get("SETUP_SECONDS") or 0) + (self.starting or 0.0)
        terminalreporter.write_line(
            f"set-up {setup:.1f} s, compiling {compiling:.1f} s, testing {testing:.1f} s"
            " (compiling and testing added over all workers)"
        )
