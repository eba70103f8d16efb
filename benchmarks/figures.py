"""The results as one SVG: who is how fast, and how close the twins are to their limits."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel for each suite that was run."""
    panels = [suite for suite in ("train", "decode", "kernels", "scaling") if suite in results]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False)
    for suite, ax in zip(panels, axes[0], strict=True):
        {"train": train, "decode": decode, "kernels": kernels, "scaling": scaling}[suite](ax, results[suite])
    machine = results["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def train(ax: Any, results: dict[str, Any]) -> None:
    """Tokens a second, and the floor set by products alone."""
    rows = {name: row["tokens_per_second"] for name, row in results["contenders"].items() if "seconds" in row}
    ax.barh(list(rows), list(rows.values()))
    ax.axvline(2048 / results["floor_seconds"], color="k", linestyle=":", label="products alone")
    ax.set(title="training, tokens per second")
    ax.legend(fontsize=8)


def decode(ax: Any, results: dict[str, Any]) -> None:
    """Tokens a second by case."""
    contenders = results["contenders"]
    names = list(next(iter(contenders.values())))
    width = 0.8 / len(contenders)
    for i, (name, cases) in enumerate(contenders.items()):
        places = [j + i * width for j in range(len(names))]
        ax.bar(places, [cases[case]["tokens_per_second"] for case in names], width, label=name)
    ax.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=7)
    ax.set(title="decoding, tokens per second", yscale="log")
    ax.legend(fontsize=8)


def kernels(ax: Any, results: dict[str, Any]) -> None:
    """Share of the limit, twin and reference."""
    rows = results["kernels"]
    shares = {name: row["share_of_limit"] for name, row in rows.items()}
    ax.barh(list(shares), list(shares.values()), label="fused")
    ax.barh(
        list(shares), [s / rows[n]["times_faster"] for n, s in shares.items()], height=0.4, label="reference"
    )
    ax.axvline(1, color="k", linestyle=":")
    ax.set(title="share of the limit of memory or products")
    ax.legend(fontsize=8)


def scaling(ax: Any, results: dict[str, Any]) -> None:
    """Seconds against relative size."""
    for name in ("batch", "time", "model"):
        row = results[name]
        relative = [size / row["sizes"][0] for size in row["sizes"]]
        ax.loglog(relative, row["seconds"], "o-", label=f"{name}: power {row['exponent']:.2f}")
    ax.set(title="seconds a training step", xlabel="size, relative to the smallest")
    ax.legend(fontsize=8)
