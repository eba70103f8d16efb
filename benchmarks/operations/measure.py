"""One library doing elementary operations: forward and backward, until the clock has seen enough."""

import importlib
import time
from typing import Any

from benchmarks.conductor import Contender, first_error, in_turn, spread
from benchmarks.operations.cases import NAMES, SIZES, inputs
from benchmarks.speed import Say

LIBRARIES = ("ours", "torch", "autograd", "mygrad", "tinygrad")
LEAST = 0.03  # seconds that one measurement takes at least


class Operations:
    """A contender that runs the cases of benchmarks/operations/with_<library>.py."""

    def __init__(self, config: dict[str, Any], library: str) -> None:
        self.library = importlib.import_module(f"benchmarks.operations.with_{library}")
        self.calls: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        """What the figures depend on."""
        return self.library.versions()

    def operate(self, case: str, size: str) -> dict[str, float]:
        """Seconds for one forward and backward. The first time it may compile, and is not to count."""
        key = f"{case} {size}"
        if key not in self.calls:
            arrays, further, g = inputs(case, *SIZES[size])
            self.calls[key] = self.library.prepare(case, arrays, further, g)
            for _ in range(4):
                self.calls[key]()
        call, count = self.calls[key], 0
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < LEAST:
            call()
            count += 1
        return {"seconds_per_call": seconds / count}


def measure(rounds: int, say: Say) -> dict[str, Any]:
    """Microseconds of every case in every library, in turn."""
    contenders = [Contender(f"operations {library}") for library in LIBRARIES]
    results: dict[str, Any] = {"versions": {}, "missing": {}, "cases": {}}
    for library, contender in zip(LIBRARIES, contenders, strict=True):
        part = results["missing" if contender.error else "versions"]
        part[library] = contender.error or contender.versions
    running = [contender for contender in contenders if not contender.error]
    for size in SIZES:
        for case in NAMES:
            say(f"{case}, {size}")
            in_turn(running, 1, "operate", case=case, size=size)
            answers = in_turn(running, rounds, "operate", case=case, size=size)
            row = results["cases"][f"{case}, {size}"] = {}
            for name, replies in answers.items():
                error = first_error(replies)
                row[name.removeprefix("operations ")] = (
                    {"error": error} if error else spread([r["seconds_per_call"] for r in replies])
                )
    for contender in contenders:
        contender.close()
    return results
