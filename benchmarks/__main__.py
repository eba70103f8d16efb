"""Speed and memory beside peers and this machine's limits.

    python -m benchmarks                    everything that can run here, some twenty minutes
    python -m benchmarks train decode --rounds 9 --contenders ours torch

Results go to runs/benchmarks/: results.json, to which each suite adds its part, and a figure. Peers that are
not installed are left out, and the tables say why: `make bench` runs where they are.
"""

import json
import os
import platform
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from rich.console import Console

from benchmarks import eight_bits, kernels, reinforcement, scaling, speed, start
from benchmarks.figures import draw
from benchmarks.operations import measure as operations
from benchmarks.tables import show
from benchmarks.worker import CONFIG

Suite = Literal[
    "train",
    "decode",
    "start",
    "scaling",
    "threads",
    "kernels",
    "fp8",
    "reinforcement",
    "operations",
    "profile",
    "cold",
]
Name = Literal["ours", "reference", "torch", "torch.compile", "jax"]


@dataclass(frozen=True)
class Benchmarks:
    """Measure speed and memory, of the model in benchmarks/config.json on all cores of this machine."""

    suites: tyro.conf.Positional[tuple[Suite, ...]] = get_args(Suite)
    """Which to run.

    train, decode: beside peers. start: import and first step. scaling: with batch, length and width. threads:
    one and two. kernels: fused forms beside references and limits. fp8: quantising, Linear, steps.
    reinforcement: a step of GRPO beside TRL's, a rollout beside bare decoding. operations:
    elementary ones beside other libraries. profile: a step by primitive. cold: the first step
    without compiled kernels.
    """
    contenders: tuple[Name, ...] = get_args(Name)
    """Who takes part in train and decode."""
    rounds: int = 7
    """Measurements of each, in turn; medians are quoted."""
    out: Path = Path("runs/benchmarks")
    """The folder of results.json and benchmarks.svg."""


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


def added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A suite's results with those of contenders that took part in an earlier run only."""
    if "contenders" in before and "contenders" in now:
        now = now | {"contenders": before["contenders"] | now["contenders"]}
    return now


def main() -> None:
    """Run the suites that were asked for, print tables, write results and figure."""
    settings = tyro.cli(Benchmarks, prog="python -m benchmarks", description=__doc__)
    config, names, rounds = json.loads(CONFIG.read_text()), list(settings.contenders), settings.rounds
    run = {
        "train": lambda say: speed.train(config, names, rounds, say),
        "decode": lambda say: speed.decode(config, names, rounds, say),
        "start": lambda say: start.start(rounds, say),
        "scaling": lambda say: scaling.measure(config, rounds, say),
        "threads": lambda say: scaling.threads(rounds, say),
        "kernels": lambda say: kernels.measure(config, rounds, say),
        "fp8": lambda say: eight_bits.measure(config, rounds, say),
        "reinforcement": lambda say: reinforcement.measure(rounds, say),
        "operations": lambda say: operations.measure(rounds, say),
        "profile": lambda say: speed.profile(say),
        "cold": lambda say: start.cold(say),
    }
    console, here = Console(), machine()
    if not console.is_terminal:
        console = Console(width=130)  # a file has room for a table
    file = settings.out / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    settings.out.mkdir(parents=True, exist_ok=True)
    for suite in settings.suites:
        with console.status(suite) as status:
            found = run[suite](lambda line, suite=suite, status=status: status.update(f"{suite}: {line}"))
        results["machine"] = here
        results[suite] = added(results.get(suite, {}), found) | {"date": here["date"]}
        show(console, suite, found)
        file.write_text(json.dumps(results, indent=1))
        draw(results, settings.out / "benchmarks.svg")
    console.print(f"{here['cpu']}, {here['cores']} cores, {here['system']}, {here['date']}")
    console.print(f"results and figure in {settings.out}")


if __name__ == "__main__":
    main()
