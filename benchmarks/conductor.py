"""Measures contenders in turn, A B A B .., so that a drift of the machine's speed meets all of them alike."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Contender:
    """A worker process; `ask` sends it a command and waits for the answer."""

    def __init__(
        self, name: str, threads: int | None = None, overrides: dict[str, Any] | None = None
    ) -> None:
        self.name = name
        environment = dict(os.environ)
        if threads:
            environment |= {variable: str(threads) for variable in THREAD_VARIABLES}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, json.dumps(overrides or {})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions = self._read().get("versions")

    @property
    def runs(self) -> bool:
        """Whether the contender could be started here (its packages are installed)."""
        return self.versions is not None

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One command and its answer: {"seconds": ..} or {"error": ..}."""
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"error": f"{self.name} ended with exit code {self._process.wait()}"}

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(timeout=60)


def in_turn(
    contenders: Iterable[Contender], rounds: int, do: str, **arguments: Any
) -> dict[str, list[dict[str, Any]]]:
    """`rounds` answers of every contender to the same command, asked in turn."""
    answers: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            answers[contender.name].append(contender.ask(do, **arguments))
    return answers


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
