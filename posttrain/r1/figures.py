"""The figures of the road's report, as SVG text, from what its stages left."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.figures import BLUE, GREEN, GREY, ORANGE, RED, column, drawing, smooth, svg
from train.trainer import Record

COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
Told = Mapping[str, Mapping[str, Any]]  # evaluations by the stage's name


def reinforcement_figure(runs: Mapping[str, Sequence[Record]], across: str) -> str:
    """Reward, think rate and length of every run of reinforcement, over "step" or "seconds"."""
    panels = (("reward", "reward"), ("think_rate", "think rate"), ("length", "tokens"))
    with drawing(len(panels), height=5.4) as (figure, found):
        for axes, (name, label) in zip(found, panels):
            for (run, records), colour in zip(runs.items(), COLOURS):
                values = np.array([record[name] for record in records])
                at = [record[across] for record in records]
                axes.plot(at, values, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(at, smooth(values, min(5, len(values))), color=colour, label=run)
            axes.set_ylabel(label)
        found[0].set_ylim(0, 1.25)
        found[1].set_ylim(0, 1.05)
        found[-1].set_ylim(bottom=0)
        found[-1].set_xlabel("steps" if across == "step" else "seconds of reinforcement, sampling included")
        figure.legend(*found[0].get_legend_handles_labels(), ncols=2, loc="outside upper left")
        return svg(figure, f"Reward, think rate and length of completions over {across}")


def level_figure(told: Told) -> str:
    """pass@1 by the number of steps of the problem, with standard errors."""
    with drawing() as (figure, (axes,)):
        for (name, evaluation), colour in zip(told.items(), COLOURS):
            levels = evaluation["by_level"]
            at = [int(level) for level in levels]
            axes.errorbar(
                at,
                [each["value"] for each in levels.values()],
                yerr=[each["error"] or 0.0 for each in levels.values()],
                color=colour,
                marker="o",
                markersize=3.5,
                capsize=2,
                label=name,
            )
            axes.set_xticks(at)
        axes.set(xlabel="steps of the problem", ylabel="pass@1")
        axes.set_ylim(-0.02, 1.04)
        figure.legend(ncols=3, loc="outside upper left")
        return svg(figure, "pass@1 by the number of steps of the problem")


def bars_figure(told: Told, alt: str) -> str:
    """pass@1 with its error, as a bar for each stage; beside it what k samples find, and the likeliest."""
    names = list(told)
    with drawing(height=1.1 + 0.42 * len(names)) as (figure, (axes,)):
        for place, evaluation in enumerate(told.values()):
            pass_1, pass_k, greedy = (evaluation[name] for name in ("pass_1", "pass_k", "greedy"))
            axes.barh(place, pass_1["value"], xerr=pass_1["error"], color=BLUE, height=0.55, capsize=2)
            axes.plot(greedy["value"], place, "D", color=ORANGE, markersize=5)
            axes.plot(pass_k["value"], place, "|", color=RED, markersize=14, markeredgewidth=2)
        k = next(iter(told.values()))["k"]
        axes.bar([0], [0], color=BLUE, label="pass@1")
        axes.plot([], [], "D", color=ORANGE, markersize=5, label="greedy")
        axes.plot([], [], "|", color=RED, markersize=10, markeredgewidth=2, label=f"pass@{k}")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.04)
        axes.grid(visible=False, axis="y")
        figure.legend(ncols=3, loc="outside upper left")
        return svg(figure, alt)


def preference_figure(records: Sequence[Record]) -> str:
    """What the preference gives the policy's text, and what held-out text costs the policy meanwhile."""
    with drawing(2, height=4.0) as (figure, (upper, lower)):
        pairs = [(record["step"], record["taste"]) for record in records if record.get("taste") is not None]
        if pairs:
            at, values = np.array(pairs, dtype=float).T
            upper.plot(at, values, color=BLUE, marker="o", markersize=3)
        steps = [record["step"] for record in records if record.get("held_out") is not None]
        lower.plot(steps, column(records, "held_out")[1], color=ORANGE, marker="o", markersize=3)
        upper.set_ylabel("preference")
        lower.set_ylabel("bits per byte")
        lower.set_xlabel("steps of the last stage")
        return svg(figure, "The preference reward above, the loss on held-out text below, over the steps")
