"""How a training step grows with batch, length and width, and what a second thread brings."""

from typing import Any

import numpy as np

from benchmarks.conductor import Contender, in_turn, spread
from benchmarks.limits import training_flop
from benchmarks.speed import BATCH, NEW, TIME, Say

SERIES = {
    "batch": [{"batch": b, "time": 128} for b in (2, 4, 8, 16)],
    "time": [{"batch": 4, "time": t} for t in (64, 128, 256, 512)],
}
WIDTHS = (128, 256, 512)
AT = {"batch": 4, "time": 128}  # where the model's width is changed
TASKS: dict[str, tuple[str, dict[str, int], str]] = {  # what is done on one thread and on two
    "training step": ("train", {"batch": BATCH, "time": TIME}, "seconds"),
    "decoding, batch 1": ("decode", {"batch": 1, "context": 16, "new": NEW}, "seconds_per_step"),
    "decoding, batch 8": ("decode", {"batch": 8, "context": 16, "new": NEW}, "seconds_per_step"),
}


def slope(x: list[float], y: list[float]) -> float:
    """The exponent of a power law through the points: the slope of a line through their logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def law(sizes: list[float], seconds: list[float]) -> dict[str, Any]:
    """A series and its exponent: over all, and over the last two points, where overhead weighs least."""
    last = slope(sizes[-2:], seconds[-2:])
    return {"sizes": sizes, "seconds": seconds, "exponent": slope(sizes, seconds), "last_exponent": last}


def measure(config: dict[str, Any], rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step along each series with its exponent."""
    results: dict[str, Any] = {}
    contender = Contender("ours")
    contender.ask("build")
    for name, calls in SERIES.items():
        for call in calls:
            say(f"over {name}: {call[name]}")
            contender.ask("train", **call)
        taken: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            for seconds, call in zip(taken, calls, strict=True):
                seconds.append(contender.ask("train", **call)["seconds"])
        medians = [spread(seconds)["median"] for seconds in taken]
        results[name] = law([call[name] for call in calls], medians)
    contender.close()
    return results | {"model": widths(config, rounds, say)}


def widths(config: dict[str, Any], rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step against the model's FLOP, its width changed."""
    flop, contenders = [], []
    for width in WIDTHS:
        say(f"width {width}")
        changes = {"hidden_size": width, "intermediate_size": 2 * width, "moe_intermediate_size": width // 2}
        contender = Contender("ours", overrides=changes)
        contender.name = str(width)
        contender.ask("build")
        contender.ask("train", **AT)
        flop.append(training_flop(config | changes, **AT))
        contenders.append(contender)
    answers = in_turn(contenders, rounds, "train", **AT)
    for contender in contenders:
        contender.close()
    return law(flop, [spread([a["seconds"] for a in answers[str(width)]])["median"] for width in WIDTHS])


def threads(rounds: int, say: Say) -> dict[str, Any]:
    """Seconds with one and with two threads, measured in turn."""
    contenders = []
    for count in (1, 2):
        contender = Contender("ours", threads=count)
        contender.name = str(count)
        contender.ask("build")
        contenders.append(contender)
    results: dict[str, Any] = {}
    for name, (do, arguments, key) in TASKS.items():
        say(f"{name} on one thread and on two")
        in_turn(contenders, 1, do, **arguments)
        answers = in_turn(contenders, rounds, do, **arguments)
        results[name] = {count: spread([a[key] for a in replies]) for count, replies in answers.items()}
    for contender in contenders:
        contender.close()
    return results
