"""A road with several seeds: what holds beyond one run of it.

Every seed is a road of its own in its own folder, with other weights, other training problems and other
held-out prompts. Two errors are told of a mean over seeds: what the seeds differ by, and what a limited
number of prompts leaves open. Stages of one seed are judged on the same prompts, hence differences by seed.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from posttrain.r1.report import write_report
from posttrain.r1.road import Stage, travel
from posttrain.r1.settings import Road
from train.cache import write_aside
from train.progress import Display

FIGURES = {"pass@1": "pass_1", "greedy": "greedy", "pass@k": "pass_k", "think rate": "think_rate"}
FIGURES |= {"mixed": "mixed_rate", "length": "length"}
ROAD = (
    ("base", "zero"),
    ("zero", "zero-language"),
    ("zero", "policy"),
    ("cold", "policy"),
    ("policy", "blend"),
    ("no-text", "blend"),
    ("blend", "final"),
)
STUDENT = (("", "-rl"), ("-rl", "-sft"), ("-rl", "-logits"), ("-sft", "-logits"))  # behind its base's name

Told = Mapping[str, Sequence[Mapping[str, Any]]]  # by stage: the evaluation of each seed


def over_seeds(road: Road, stages: Callable[[Road], list[Stage]], display: Display) -> list[str]:
    """Go the road with every seed, as far as it is not gone yet; tables that compare, also written down."""
    told: dict[str, list[dict[str, Any]]] = {}
    for seed in road.seeds:
        display.say(f"seed {seed}")
        one = replace(road, seed=seed, seeds=(), out=road.out / f"seed-{seed}")
        for name, found in travel(one, stages(one), display, after=write_report).items():
            if "evaluation" in found:
                told.setdefault(name, []).append(found["evaluation"])
    results = {"seeds": road.seeds, "stages": means(told), "against": differences(told)}
    write_aside(road.out / "seeds.json", (json.dumps(results, indent=2) + "\n").encode())
    lines = table(results)
    write_aside(road.out / "seeds.md", ("\n".join(lines) + "\n").encode())
    return lines


def over(values: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
    """The mean over seeds; its standard error from their spread, and the one from the prompts alone.

    The second is None where there are no errors: what is not measured on prompts.
    """
    n = len(values)
    return {
        "value": fmean(values),
        "of_seeds": stdev(values) / math.sqrt(n),
        "of_prompts": math.hypot(*errors) / n if errors else None,
        "each": [*values],
    }


def means(told: Told) -> dict[str, Any]:
    """All figures of every stage, over the seeds."""
    found: dict[str, Any] = {}
    for name, several in told.items():
        parts = {key: [each[key] for each in several] for key in FIGURES.values()}
        found[name] = {
            key: over([part["value"] for part in each], [part["error"] for part in each])
            for key, each in parts.items()
        }
        found[name]["bits_per_byte"] = over([each["bits_per_byte"] for each in several], [])
    return found


def differences(told: Told) -> dict[str, Any]:
    """How much more of pass@1, mixed notations and bits per byte the second of two stages has, by seed."""
    found = {}
    bases = [name for name in told if name.startswith("student-") and name.count("-") == 1]
    pairs = [*ROAD, *((base + first, base + second) for base in bases for first, second in STUDENT)]
    for first, second in pairs:
        if first in told and second in told:
            both = [*zip(told[first], told[second], strict=True)]
            gains = {}
            for key in ("pass_1", "mixed_rate"):
                parts = [(a[key], b[key]) for a, b in both]
                errors = [math.hypot(a["error"], b["error"]) for a, b in parts]
                gains[key] = over([b["value"] - a["value"] for a, b in parts], errors)
            gains["bits_per_byte"] = over([b["bits_per_byte"] - a["bits_per_byte"] for a, b in both], [])
            found[f"{second} against {first}"] = gains
    return found


def table(results: Mapping[str, Any]) -> list[str]:
    """Both as tables in Markdown: mean (error over seeds)."""
    lines = [f"| {len(results['seeds'])} seeds | {' | '.join(FIGURES)} | each pass@1 | bits/byte |"]
    lines.append(f"|{'---|' * (len(FIGURES) + 3)}")
    for name, found in results["stages"].items():
        cells = [plus(found[key]) for key in FIGURES.values()]
        each = " ".join(f"{value:.3f}" for value in found["pass_1"]["each"])
        lines.append(f"| {name} | {' | '.join(cells)} | {each} | {plus(found['bits_per_byte'])} |")
    lines += ["", "| difference | pass@1 | by prompts | each | mixed | bits/byte |", f"|{'---|' * 6}"]
    for name, found in results["against"].items():
        gain, each = found["pass_1"], " ".join(f"{value:+.3f}" for value in found["pass_1"]["each"])
        cells = [plus(gain, "+"), f"({gain['of_prompts']:.3f})", each]
        cells += [plus(found[key], "+") for key in ("mixed_rate", "bits_per_byte")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def plus(figure: Mapping[str, Any], sign: str = "") -> str:
    """A mean with its error over seeds."""
    return f"{figure['value']:{sign}.3f} ({figure['of_seeds']:.3f})"
