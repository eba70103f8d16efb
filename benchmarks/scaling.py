"""How a training step grows with batch, length and width, and what a second thread brings."""

from typing import Any

import numpy as np

from benchmarks.conductor import Contender, in_turn, spread
from benchmarks.limits import training_flop
from benchmarks.speed import Say

SERIES = {
    "batch": [{"batch": b, "time": 128} for b in (2, 4, 8, 16)],
    "time": [{"batch": 4, "time": t} for t in (64, 128, 256, 512)],
}
WIDTHS = (128, 256, 512)


def slope(x: list[float], y: list[float]) -> float:
    """The exponent of a power law through the points: the slope of a line through their logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure(config: dict[str, Any], rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step along each series with its exponent, and with one and two threads in turn."""
    results: dict[str, Any] = {}
    contender = Contender("ours")
    contender.ask("build")
    for name, calls in SERIES.items():
        say(f"over {name}")
        seconds = []
        for call in calls:
            contender.ask("train", **call)
            replies = [contender.ask("train", **call)["seconds"] for _ in range(rounds)]
            seconds.append(spread(replies)["median"])
        sizes = [call[name] for call in calls]
        results[name] = {"sizes": sizes, "seconds": seconds, "exponent": slope(sizes, seconds)}
    contender.close()
    results["model"] = widths(config, rounds, say)
    results["threads"] = threads(rounds, say)
    return results


def widths(config: dict[str, Any], rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step against the model's FLOP, its width changed."""
    flop, seconds = [], []
    for width in WIDTHS:
        say(f"width {width}")
        changes = {"hidden_size": width, "intermediate_size": 2 * width, "moe_intermediate_size": width // 2}
        contender = Contender("ours", overrides=changes)
        contender.ask("build")
        contender.ask("train", batch=4, time=128)
        replies = [contender.ask("train", batch=4, time=128)["seconds"] for _ in range(rounds)]
        contender.close()
        flop.append(training_flop(config | changes, 4, 128))
        seconds.append(spread(replies)["median"])
    return {"sizes": flop, "seconds": seconds, "exponent": slope(flop, seconds)}


def threads(rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step with one and with two threads, measured in turn."""
    say("threads")
    contenders = []
    for count in (1, 2):
        contender = Contender("ours", threads=count)
        contender.name = f"{count} threads"
        contender.ask("build")
        contender.ask("train", batch=8, time=256)
        contenders.append(contender)
    answers = in_turn(contenders, rounds, "train", batch=8, time=256)
    for contender in contenders:
        contender.close()
    return {name: spread([reply["seconds"] for reply in replies]) for name, replies in answers.items()}
