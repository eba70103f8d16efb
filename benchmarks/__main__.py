"""Speed and memory beside peers and this machine's limits.

    python -m benchmarks                    everything that can run here
    python -m benchmarks train decode --rounds 9 --contenders ours torch

Results go to runs/benchmarks/: results.json and a figure. Peers that are not installed are left out:
`make bench` runs in the environment of `make oracle`, which has them.
"""

import json
import os
import platform
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from benchmarks import kernels, scaling, speed
from benchmarks.figures import draw
from benchmarks.tables import show
from benchmarks.worker import CONFIG

Suite = Literal["train", "decode", "start", "scaling", "kernels"]
SUITES: tuple[Suite, ...] = ("train", "decode", "start", "scaling", "kernels")


@dataclass(frozen=True)
class Benchmarks:
    """Measure speed and memory."""

    suites: tyro.conf.Positional[tuple[Suite, ...]] = SUITES
    """Which to run."""
    contenders: tuple[str, ...] = ("ours", "reference", "torch", "torch.compile")
    rounds: int = 7
    """Measurements of each, in turn; medians are quoted."""
    out: Path = Path("runs/benchmarks")


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "date": datetime.now().isoformat(timespec="minutes"),
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def main() -> None:
    """Run the suites that were asked for, print tables, write results and figure."""
    settings = tyro.cli(Benchmarks, prog="python -m benchmarks")
    config, names = json.loads(CONFIG.read_text()), list(settings.contenders)
    console = Console()
    run = {
        "train": lambda say: speed.train(config, names, settings.rounds, say),
        "decode": lambda say: speed.decode(config, names, settings.rounds, say),
        "start": lambda say: speed.start(say),
        "scaling": lambda say: scaling.measure(config, settings.rounds, say),
        "kernels": lambda say: kernels.measure(settings.rounds, say),
    }
    results: dict = {"machine": machine()}
    for suite in settings.suites:
        with console.status(suite) as status:
            results[suite] = run[suite](
                lambda line, suite=suite, status=status: status.update(f"{suite}: {line}")
            )
        show(console, suite, results[suite])
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "results.json").write_text(json.dumps(results, indent=1))
    draw(results, settings.out / "benchmarks.svg")
    console.print(f"results and figure in {settings.out}")


if __name__ == "__main__":
    main()
