"""Perplexity by position: how well a token is predicted by how many tokens stand before it in its row."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import LogLocator

import tinygrad_ds as tg
from layers import DeepSeekModel
from train import figures
from train.batches import Tokens
from train.errors import UserError

Curves = Mapping[str, Sequence[float]]
"""Perplexity in each part of a row, by what was measured."""


def nats_by_position(
    model: DeepSeekModel, tokens: Tokens, *, time: int, stride: int, batch: int
) -> np.ndarray:
    """(time,) the mean of -ln p over what stands at each position of rows of `time` tokens.

    The first position has one token before it. A row begins at every `stride`-th token, and the text is read
    as a circle: so every token is judged once in each of the time / stride parts of a row. Parts differ by
    what a token has before it, and not by which tokens they hold, as they would with rows side by side.

    stride must divide time. What is left of the text behind a whole number of strides is not read. Raises
    UserError where the text is shorter than a row.
    """
    count = len(tokens) // stride  # rows
    if count * stride < time:
        raise UserError(
            f"the held-out text has {len(tokens):,} tokens but a row has {time:,}: take a smaller factor, or "
            "train on more text"
        )
    stream, places = tokens.stream(), np.arange(time)
    total = np.zeros(time)
    for start in range(0, count, batch):
        rows = stride * np.arange(start, min(start + batch, count))[:, None] + places  # (batch, time)
        rows %= count * stride
        with tg.no_grad():
            logits = model(stream[rows])
            losses = tg.cross_entropy(logits, stream[rows + 1], reduction="none")  # (batch, time)
        total += losses.data.sum(0, dtype=np.float64)
    return total / count


def perplexity_by_part(nats: np.ndarray, stride: int) -> list[float]:
    """exp of the mean of nats (time,) in each part of `stride` positions."""
    return np.exp(nats.reshape(-1, stride).mean(1)).tolist()


def ranges(curves: Curves, stride: int) -> list[str]:
    """The positions of each part, counted from 1: "1-32", "33-64", .."""
    parts = len(next(iter(curves.values())))
    return [f"{i * stride + 1}-{(i + 1) * stride}" for i in range(parts)]


def text_table(curves: Curves, stride: int) -> str:
    """A line for each part of a row, a column for each curve."""
    lines = [f"{'positions':>12}  " + "  ".join(f"{name:>18}" for name in curves)]
    for part, *values in zip(ranges(curves, stride), *curves.values()):
        lines.append(f"{part:>12}  " + "  ".join(f"{value:18.2f}" for value in values))
    return "\n".join(lines)


def html_table(curves: Curves, stride: int) -> str:
    """The same for a page."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in curves)
    rows = [
        f"<tr><td>{part}</td>{''.join(f'<td>{value:.2f}</td>' for value in values)}</tr>"
        for part, *values in zip(ranges(curves, stride), *curves.values())
    ]
    return "\n".join([f"<table>\n<tr><th>positions</th>{names}</tr>", *rows, "</table>"])


def positions_figure(curves: Curves, stride: int, trained: int) -> str:
    """Perplexity against position as SVG text, with a mark at the `trained` length."""
    with figures.drawing(height=3.8) as (figure, (axes,)):
        colours = (figures.GREY, figures.ORANGE, figures.BLUE)
        for (name, values), colour in zip(curves.items(), colours):
            middles = stride * (np.arange(len(values)) + 0.5)
            axes.plot(middles, values, color=colour, marker="o", markersize=3, label=name)
        axes.axvline(trained, color=figures.RED, linewidth=1, linestyle="--", label="length trained before")
        axes.set(xlabel="position in the row", ylabel="perplexity (log scale)", yscale="log")
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        figure.legend(loc="outside upper left", ncols=2)
        return figures.svg(figure, "Perplexity of held-out text by position in a row, before and after")
