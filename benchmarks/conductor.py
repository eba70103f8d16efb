"""Measures contenders in turn, A B A B .., so that a drift of the machine's speed meets all of them alike."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
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
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, json.dumps(overrides or {})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        greeting = self._read()
        self.versions: dict[str, str] | None = greeting.get("versions")
        self.error: str | None = greeting.get("error")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One command and its answer: {"seconds": ..} or {"error": ..}."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return self._ended()

    def _ended(self) -> dict[str, Any]:
        """Why the process is no more: the last line that it wrote, or its exit code."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        return {"error": next((line for line in reversed(lines) if line.strip()), f"exit code {code}")}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._errors.close()


def in_turn(
    contenders: Iterable[Contender], rounds: int, do: str, **arguments: Any
) -> dict[str, list[dict[str, Any]]]:
    """`rounds` answers of every contender to the same command, asked in turn."""
    answers: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            answers[contender.name].append(contender.ask(do, **arguments))
    return answers


def first_error(answers: Iterable[dict[str, Any]]) -> str | None:
    """What went wrong first, if anything did."""
    return next((answer["error"] for answer in answers if "error" in answer), None)


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
