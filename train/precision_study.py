"""The same training in float32, in FP8, and in FP8 with one thing of the recipe done otherwise.

Every variant is a run of its own, on the same text, from the same weights and with the same batches as the
float32 run of its seed. What counts is the loss of the last steps: how far from float32's, and is that more
than another seed changes? DeepSeek-V3 (section 3.3, appendix B.1) found less than 0.25 % relative difference.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import numpy as np

from layers.precision import Fp8
from train import run
from train.cache import write_aside
from train.config import Config, Learning, Sizes
from train.errors import UserError
from train.figures import BLUE, GREEN, GREY, ORANGE, drawing, smooth, svg
from train.learning_rate import Schedule
from train.metrics import read_metrics
from train.progress import Display
from train.team import Team

LIMIT = 0.25  # percent, the published claim
SHARE = 10  # the loss at the end is the mean over the last tenth of the steps

MODEL = Config(
    time=128,
    micro_batch=16,
    evaluate_every=100,
    save_every=10_000,
    sizes=Sizes(
        vocab_size=1024,
        num_hidden_layers=3,
        moe_intermediate_size=96,
        num_nextn_predict_layers=0,
    ),
    learning=Learning(optimizer="adamw", lr=3e-3, weight_decay=0.1, bias_speed=1e-3),
    schedule=Schedule(
        warmup_steps=40, constant=0.2, cosine=0.8, floor=0.1, last=0.0, batch=16, first_batch=0
    ),
)

Precision = Literal["float32", "bfloat16", "fp8"]

ABLATIONS: dict[str, tuple[Precision, Fp8]] = {
    "one scale a tensor": ("fp8", Fp8(scaling="tensor")),
    "14-bit sums, promoted": ("fp8", Fp8(accumulation="tensor_core")),
    "14-bit sums, never promoted": ("fp8", Fp8(accumulation="tensor_core", promote_every=0)),
    "E5M2 gradients": ("fp8", Fp8(gradient_format="e5m2")),
    "scales powers of two": ("fp8", Fp8(power_of_two=True)),
    "stochastic rounding": ("fp8", Fp8(stochastic=True)),
    "bfloat16": ("bfloat16", Fp8()),
}


@dataclass(frozen=True)
class Study:
    """Train the same small model in float32, FP8 and variations of FP8, and compare."""

    out: Path = Path("runs/fp8")
    """Folder of the runs, the table and the figure. Runs that are there already are not done again."""
    steps: int = 400
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds for float32 and FP8; variations take the first alone."""
    text: tuple[Path, ...] = ()
    """Your own text, as in training."""
    only: tuple[str, ...] = ()
    """Variations to do; without it all of them."""

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 2:
            raise UserError(f"seeds are {self.seeds} but the noise between seeds needs two that differ")
        if self.steps < SHARE:
            raise UserError(f"steps is {self.steps} but must be at least {SHARE}")
        if unknown := [name for name in self.only if name not in ABLATIONS]:
            raise UserError(f"{unknown[0]!r} is no variation: there are {', '.join(ABLATIONS)}")


def study(asked: Study, display: Callable[[], Display]) -> None:
    """Do the runs that are missing, then write results.json, the table and the figure."""
    variants: dict[str, tuple[Precision, Fp8]] = {"float32": ("float32", Fp8()), "FP8": ("fp8", Fp8())}
    variants |= {name: ABLATIONS[name] for name in asked.only or ABLATIONS}
    losses: dict[str, dict[int, list[float]]] = {}
    for name, (precision, recipe) in variants.items():
        for seed in asked.seeds if name in ("float32", "FP8") else asked.seeds[:1]:
            folder = asked.out / f"{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}"
            config = replace(
                MODEL,
                out=folder,
                text=asked.text,
                seed=seed,
                tokens=asked.steps * MODEL.schedule.batch * MODEL.time,
                precision=precision,
                fp8=recipe,
            )
            if not (folder / "results.json").exists():
                shutil.rmtree(folder, ignore_errors=True)  # cut short earlier
                run.start(config, display(), Team())
            records = read_metrics(folder / "metrics.jsonl")
            losses.setdefault(name, {})[seed] = [record["main"] for record in records]
    results = compare(losses)
    run.write_json(asked.out / "results.json", results)
    for name, text in {
        "table.md": table(results),
        "losses.svg": loss_figure(losses),
        "differences.svg": difference_figure(results),
    }.items():
        write_aside(asked.out / name, text.encode())


def compare(losses: Mapping[str, Mapping[int, list[float]]]) -> dict:
    """For every variant: the loss at the end by seed, and its difference from float32's in percent.

    losses: by variant and seed, that of every step. "noise" is the standard deviation of float32's losses at
    the end between seeds, in percent of their mean.
    """
    ends = {
        name: {seed: fmean(steps[-max(1, len(steps) // SHARE) :]) for seed, steps in by_seed.items()}
        for name, by_seed in losses.items()
    }
    exact = ends["float32"]
    return {
        "noise": 100 * stdev(exact.values()) / fmean(exact.values()),
        "variants": {
            name: {
                "loss": by_seed,
                "percent": {seed: 100 * (end - exact[seed]) / exact[seed] for seed, end in by_seed.items()},
            }
            for name, by_seed in ends.items()
        },
    }


def table(results: Mapping) -> str:
    """The comparison as a table in Markdown."""
    lines = ["| | loss at the end | from float32, each seed |", "|---|---|---|"]
    for name, found in results["variants"].items():
        losses = " ".join(f"{loss:.4f}" for loss in found["loss"].values())
        percent = " ".join(f"{value:+.3f} %" for value in found["percent"].values())
        lines.append(f"| {name} | {losses} | {'' if name == 'float32' else percent} |")
    lines.append(f"\nBetween seeds float32's loss differs by {results['noise']:.2f} % (standard deviation).")
    return "\n".join(lines) + "\n"


def loss_figure(losses: Mapping[str, Mapping[int, list[float]]]) -> str:
    """Float32 and FP8 over the steps, as SVG text."""
    with drawing(1, 3.0) as (figure, (axes,)):
        for name, colour in (("float32", GREY), ("FP8", ORANGE)):
            for seed, steps in losses[name].items():
                label = name if seed == min(losses[name]) else None
                curve = smooth(np.array(steps), max(1, len(steps) // 40))
                axes.plot(curve, color=colour, linewidth=0.9, label=label)
        axes.set(xlabel="steps", ylabel="loss (nats per token)")
        axes.legend()
        return svg(figure, "Loss in float32 and in FP8 against steps")


def difference_figure(results: Mapping) -> str:
    """How far every variant ends from float32, as SVG text."""
    names = [name for name in results["variants"] if name != "float32"]
    with drawing(1, 0.9 + 0.3 * len(names)) as (figure, (axes,)):
        axes.axvspan(-results["noise"], results["noise"], color=GREY, alpha=0.15)
        axes.axvspan(-LIMIT, LIMIT, color=GREEN, alpha=0.2)
        for row, name in enumerate(reversed(names)):
            values = list(results["variants"][name]["percent"].values())
            axes.plot(values, [row] * len(values), "o", color=BLUE)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.set(xlabel=f"percent from float32\n(green: {LIMIT} %, grey: seeds)")
        return svg(figure, "How far every variant ends from float32")
