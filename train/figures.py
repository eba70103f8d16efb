"""The figures of a run's report, as SVG text, from its metrics."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from train.trainer import Record

WIDTH = 4.8  # inches: at the width of a phone the letters are still about 10 pixels tall
BLUE, ORANGE, GREY, GREEN, RED = "#2b6cb0", "#c05621", "#718096", "#2f855a", "#c53030"
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "tinygrad_ds",
}


@contextmanager
def drawing(rows: int = 1, height: float = 3.2) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of `rows` panels one below the other, which share the horizontal axis."""
    with rc_context(STYLE):
        figure = Figure((WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def svg(figure: Figure, alt: str) -> str:
    """The figure as an <svg> element that scales with its page; `alt` is read out in its place."""
    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)


def column(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, values) of the records that have a number of this name."""
    pairs = [(record["seconds"], record[name]) for record in records if record.get(name) is not None]
    seconds, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return seconds, values


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value with its neighbours, `width` in all, fewer at the ends."""
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def loss_figure(records: Sequence[Record]) -> str:
    """Loss of the next token, and of the one after it by multi-token prediction, against time."""
    with drawing() as (figure, (axes,)):
        for name, label, colour in (
            ("main", "next token", BLUE),
            ("mtp", "the token after it (MTP)", ORANGE),
        ):
            seconds, values = column(records, name)
            if len(values):
                axes.plot(seconds, values, color=colour, alpha=0.2, linewidth=0.7)
                axes.plot(seconds, smooth(values, max(1, len(values) // 40)), color=colour, label=label)
        axes.set(xlabel="seconds of training", ylabel="loss (nats per token)")
        axes.set_xlim(left=0)
        axes.legend()
        return svg(figure, "Training loss against time")


def held_out_figure(records: Sequence[Record], final: float, baselines: dict[str, float]) -> str:
    """Bits per byte of held-out text against time, with what simpler means reach as level lines."""
    with drawing(height=4.2) as (figure, (axes,)):
        seconds, values = column(records, "held_out")
        axes.plot(seconds, values, color=BLUE, marker="o", markersize=3, label="the model, on a part")
        axes.plot(seconds[-1:], [final], "D", color=RED, label=f"the model, on all of it: {final:.3f}")
        ceiling = max(baselines.values())
        for level in baselines.values():
            axes.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
        label_levels(axes, baselines)
        lowest = min(final, *values, *baselines.values()) if len(values) else min(final, *baselines.values())
        axes.set(xlabel="seconds of training", ylabel="bits per byte (log scale)", yscale="log")
        axes.set_xlim(left=0)
        axes.set_ylim(lowest * 0.93, ceiling * 1.08)
        ticks = [t for t in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if lowest * 0.93 <= t <= ceiling * 1.08]
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        figure.legend(loc="outside upper left")
        return svg(figure, f"Held-out bits per byte against time, {final:.3f} at the end, beside baselines")


def label_levels(axes: Axes, levels: dict[str, float]) -> None:
    """Names at the right edge, moved apart where lines lie close together. On a logarithmic axis."""
    gap = 1.06
    place = 0.0
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        place = max(level, place * gap)
        axes.annotate(
            f"{name} {level:.2f}",
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color="#2d3748",
        )


def load_figure(records: Sequence[Record]) -> str:
    """Each expert's share of the tokens over time, one panel to a layer; 1 is an even load."""
    names = list(records[0]["loads"])
    if not names:
        return ""
    with drawing(len(names), height=0.6 + 1.5 * len(names)) as (figure, panels):
        seconds = [record["seconds"] for record in records]
        for axes, name in zip(panels, names):
            loads = np.array([record["loads"][name] for record in records], dtype=float)  # (steps, experts)
            relative = loads * loads.shape[1] / np.maximum(loads.sum(1, keepdims=True), 1)
            width = max(1, len(records) // 40)
            for expert in relative.T:
                axes.plot(seconds, smooth(expert, width), color=BLUE, alpha=0.45, linewidth=0.9)
            axes.axhline(1, color=ORANGE, linewidth=1)
            axes.set_ylim(0, max(2.0, min(float(relative.max()), 6.0)))
            axes.set_ylabel("load")
            axes.set_title(name.removeprefix("model.").removesuffix(".mlp"), fontsize=9, loc="left")
        panels[-1].set_xlabel("seconds of training")
        panels[-1].set_xlim(left=0)
        return svg(figure, "Load of every expert over time, by layer; 1 is even")


def gradient_figure(records: Sequence[Record]) -> str:
    """Norm of the gradient in each layer over time, before clipping."""
    kept = [record for record in records if record.get("grad_norms")]
    with drawing(height=3.6) as (figure, (axes,)):
        names = list(kept[0]["grad_norms"]) if kept else []
        colours = figure_colours(len(names))
        for name, colour in zip(names, colours):
            norms = [record["grad_norms"].get(name) for record in kept]
            axes.plot([record["seconds"] for record in kept], norms, color=colour, label=name, linewidth=1)
        axes.set(xlabel="seconds of training", ylabel="norm of the gradient", yscale="log")
        axes.set_xlim(left=0)
        figure.legend(ncols=4, loc="outside upper left")
        return svg(figure, "Norm of the gradient over time, by layer")


def figure_colours(count: int) -> list:
    """So many colours, dark to light, told apart in print too."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.9, max(count, 1))))


def phases_figure(phases: dict[str, float]) -> str:
    """Where the seconds went."""
    names = sorted(phases, key=phases.__getitem__)
    with drawing(height=0.7 + 0.28 * len(names)) as (figure, (axes,)):
        bars = axes.barh(names, [phases[name] for name in names], color=BLUE, height=0.6)
        axes.bar_label(bars, [f" {phases[name]:.1f} s" for name in names], fontsize=9)
        axes.grid(visible=False)
        axes.margins(x=0.15)
        axes.set_xlabel("seconds")
        return svg(figure, "Seconds by phase")
