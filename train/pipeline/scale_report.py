"""`python -m train at-scale`: V3's training predicted, in tables with every assumption, and its figure."""

from dataclasses import dataclass, fields
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from layers import DeepSeekConfig
from train.cache import write_aside
from train.figures import BLUE, GREY, ORANGE, RED, drawing, svg
from train.pipeline.at_scale import (
    PROFILED,
    PUBLISHED_HOURS,
    PUBLISHED_STEP,
    Prediction,
    extremes,
    from_published_passes,
    predict,
    profiled,
    sensitivity,
    spent,
)
from train.pipeline.cluster import Assumptions, doubtful
from train.pipeline.drawing import chart

MILLION = 1e6


@dataclass(frozen=True)
class AtScale:
    """Predict the GPU hours of DeepSeek-V3's pre-training from its plan, beside the published ones."""

    given: tyro.conf.OmitArgPrefixes[Assumptions]
    svg: Path | None = None
    """Draw how the hours depend on each assumption into this file."""
    timeline: Path | None = None
    """Draw the simulated step into this file."""


def report(asked: AtScale) -> None:
    """Print all of it, then write the figures that are asked for."""
    config, given = DeepSeekConfig(), asked.given
    found = predict(config, given)
    console = Console()
    console.print(assumption_table(given))
    console.print(step_table(found, given))
    told = (f"{name} {each:.1f} ({PROFILED[name]})" for name, each in profiled(config, given).items())
    print(f"four layers with experts, ms, in brackets as profiled: {', '.join(told)}")
    print(f"layers of the stages, head and MTP counted as one: {', '.join(map(str, found.split.counts))}")
    print(
        f"{found.hours / MILLION:.2f} million GPU hours predicted, "
        f"{PUBLISHED_HOURS / MILLION} million published: "
        f"{found.hours / PUBLISHED_HOURS - 1:+.0%}"
    )
    hours = sensitivity(config, given, found.split)
    least, most = extremes(config, given, found.split, hours)
    print(f"{least / MILLION:.2f} to {most / MILLION:.2f} million with all doubtful numbers at their ends")
    if asked.svg:
        write_aside(asked.svg, tornado(hours, found.hours).encode())
    if asked.timeline:
        write_aside(asked.timeline, chart({"DeepSeek-V3, one step, in seconds": found.timeline}).encode())


def assumption_table(given: Assumptions) -> Table:
    """Every number that the prediction rests on."""
    table = Table(title="what the prediction rests on", title_justify="left")
    for name in ("number", "value", "might be", "unit", "from"):
        right = name in ("value", "might be")
        table.add_column(name, justify="right" if right else "left", no_wrap=right or name == "number")
    for each in fields(given):
        about = each.metadata
        span = "" if about["low"] is None else f"{about['low']:.4g} to {about['high']:.4g}"
        table.add_row(each.name, f"{getattr(given, each.name):.4g}", span, about["unit"], about["source"])
    return table


def step_table(found: Prediction, given: Assumptions) -> Table:
    """Seconds of a step: predicted, simulated from measured passes, measured."""
    simulated = spent(from_published_passes(given)) | {"optimizer": PUBLISHED_STEP["optimizer"]}
    simulated["step"] = sum(simulated.values())
    table = Table(title="seconds of one step, the average rank", title_justify="left")
    for name in ("", "predicted", "schedule with measured passes", "measured (published)"):
        table.add_column(name, justify="right" if name else "left")
    for name, seconds in PUBLISHED_STEP.items():
        table.add_row(name, f"{found.seconds[name]:.2f}", f"{simulated[name]:.2f}", f"{seconds:.2f}")
    return table


def tornado(hours: dict[str, tuple[float, float]], middle: float) -> str:
    """A bar for each doubtful number: the hours at its low and its high end, the widest at the top."""
    names = sorted(hours, key=lambda name: abs(hours[name][1] - hours[name][0]))
    spans = {each.name: (each.metadata["low"], each.metadata["high"]) for each in doubtful()}
    with drawing(height=1.2 + 0.27 * len(names)) as (figure, (axes,)):
        for place, name in enumerate(names):
            for value, end, colour in zip(spans[name], hours[name], (ORANGE, BLUE)):
                axes.barh(place, (end - middle) / MILLION, left=middle / MILLION, color=colour, height=0.6)
                side = "left" if end >= middle else "right"
                place_x = max(end, middle) if end >= middle else min(end, middle)
                if abs(end - middle) > 0.004 * middle:
                    text = f" {short(value)} "
                    axes.text(place_x / MILLION, place, text, ha=side, va="center", fontsize=7.5, color=GREY)
        axes.axvline(middle / MILLION, color=GREY, linewidth=1)
        axes.axvline(PUBLISHED_HOURS / MILLION, color=RED, linewidth=1.5)
        axes.text(PUBLISHED_HOURS / MILLION, 0, "published ", color=RED, ha="right", va="center", fontsize=9)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
        axes.grid(visible=False)
        axes.margins(x=0.08, y=0.03)
        axes.set_xlabel("million GPU hours")
        for word, colour, x in (("low end", ORANGE, 0.5), ("high end", BLUE, 0.7)):
            figure.text(x, 0.995, word, color=colour, va="top", fontsize=9)
        return svg(figure, "Predicted GPU hours of DeepSeek-V3 by each assumption's low and high end")


def short(value: float) -> str:
    """A rate in T or G, anything else as it is."""
    for size, letter in ((1e12, "T"), (1e9, "G")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"
