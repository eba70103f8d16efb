"""Curves and histograms, as SVG for a page and as characters for a terminal.

matplotlib is imported when something is drawn: the grader's process, which imports this package, does
without.
"""

import io
import math
from collections.abc import Sequence

import numpy as np

from tinygrad_ds.formats import decode

WIDTH, HEIGHT = 4.8, 3.0  # inches: on a phone the letters are still about 10 pixels tall
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#c53030")
LOWEST, HIGHEST = -16, 10  # powers of two that are shown; what is smaller stands at the left edge
CELLS = 64  # the most tiles that a map shows down
LEVELS = " ▁▂▃▄▅▆▇█"


def v_curve(steps: np.ndarray, curves: dict[str, np.ndarray], title: str) -> str:
    """Errors against step sizes, both on logarithmic axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_style()):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        for colour, (name, errors) in zip(COLOURS, curves.items()):
            kept = np.maximum(errors, 1e-17)
            axes.loglog(steps, kept, "o-", color=colour, label=name, markersize=3, linewidth=1.2)
        axes.set(xlabel="step", ylabel="largest relative error", title=title)
        axes.legend()
        return _svg(figure, f"{title}: error against step size")


def histogram(errors: dict[str, np.ndarray], title: str) -> str:
    """How many entries have an error of which size; exact ones stand at the left edge."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_style()):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        bins = np.arange(-18.0, 0.5, 0.5).tolist()
        for colour, (name, values) in zip(COLOURS, errors.items()):
            axes.hist(logarithms(values), bins=bins, histtype="step", color=colour, label=name)
        axes.set(xlabel="log10 of the relative error (-18: the same bits)", ylabel="entries", title=title)
        axes.set_yscale("symlog", linthresh=1)
        axes.legend()
        return _svg(figure, title)


def grid_figure(scaled: np.ndarray, title: str) -> str:
    """A histogram of log2 |x / s|, the numbers of E4M3 as lines below it, what becomes 0 shaded."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sizes = abs(scaled[(scaled != 0) & np.isfinite(scaled)])
    numbers = decode(np.arange(1, 127, dtype=np.uint8), "e4m3")
    with rc_context(_style()):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        bins = np.arange(LOWEST, HIGHEST + 0.25, 0.25).tolist()
        axes.hist(np.maximum(np.log2(sizes), LOWEST), bins=bins, color=COLOURS[0])
        axes.axvspan(LOWEST, -10, color=COLOURS[3], alpha=0.15)  # half of 2^-9, the smallest
        top = max(axes.get_ylim()[1], 1.0)
        axes.vlines(np.log2(numbers), -0.09 * top, -0.02 * top, color=COLOURS[1], linewidth=0.5)
        axes.set(xlim=(LOWEST, HIGHEST), ylim=(-0.1 * top, top), title=title)
        axes.set(xlabel="log2 of the number over its scale", ylabel="numbers")
        return _svg(figure, f"Histogram over the grid of E4M3: {title}")


def error_map(errors: np.ndarray, title: str) -> str:
    """Relative error of tiles, (down, across); the worst of neighbours where there are many."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if len(errors) > CELLS:
        starts = np.linspace(0, len(errors), CELLS, endpoint=False).astype(int)
        errors = np.maximum.reduceat(errors, starts, axis=0)
    with rc_context(_style()):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        drawn = axes.pcolormesh(np.log10(np.maximum(errors[::-1], 1e-3)), vmin=-2, vmax=0, cmap="magma")
        bar = figure.colorbar(drawn, ticks=[-2, -1, 0])
        bar.ax.set_yticklabels(["1 %", "10 %", "all"])
        axes.grid(visible=False)
        axes.set(xlabel="tiles across", ylabel="rows", title=title)
        axes.set_xticks([])
        axes.set_yticks([])
        return _svg(figure, f"Error by tile: {title}")


def logarithms(errors: np.ndarray) -> np.ndarray:
    """log10 of the errors, no error counting as 1e-18."""
    return np.log10(np.maximum(errors.ravel().astype(np.float64), 1e-18))


def _style() -> dict:
    return {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e2e8f0",
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "lab",
    }


def _svg(figure, alt: str) -> str:
    """The figure as an <svg> that scales with its page; `alt` is read out in its place."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context(_style()):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(
        "<svg ", f'<svg class="figure" role="img" aria-label="{alt}" ', 1
    )


def text_curve(steps: np.ndarray, curves: dict[str, np.ndarray]) -> str:
    """The same curves in characters: a column for each step, a row for each decade of the error."""
    marks = dict(zip(curves, "ox+*"))
    all_errors = np.log10(np.maximum(np.concatenate(list(curves.values())), 1e-17))
    low, high = math.floor(all_errors.min()), math.ceil(all_errors.max())
    rows = [[" "] * (4 * len(steps)) for _ in range(high - low + 1)]
    for name, errors in curves.items():
        for column, error in enumerate(np.log10(np.maximum(errors, 1e-17))):
            rows[round(high - error)][4 * column + 1] = marks[name]
    lines = [f"1e{high - number:+03d} │{''.join(row)}".rstrip() for number, row in enumerate(rows)]
    lines.append("      └" + "─" * (4 * len(steps)))
    lines.append("step    " + "".join(f"{round(math.log10(step)):<4d}" for step in steps) + " (powers of 10)")
    lines.append("        " + "   ".join(f"{mark} {name}" for name, mark in marks.items()))
    return "\n".join(lines)


def text_histogram(values: Sequence[float] | np.ndarray, name: str) -> str:
    """A histogram of logarithms in one line, decade by decade from 1e-18 to 1."""
    counts, _ = np.histogram(values, bins=np.arange(-18.5, 1.5))
    largest = counts.max(initial=1) or 1
    bars = "".join(
        LEVELS[0 if not c else max(1, round(8 * math.log1p(c) / math.log1p(largest)))] for c in counts
    )
    return f"{name:<22}1e-18 │{bars}│ 1"
