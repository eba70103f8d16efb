"""The results as one SVG: who is how fast, and how close the kernels are to their limits."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.speed import BATCH, CASES, TIME, case_name


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel for each suite that was run and can be drawn."""
    panels = [suite for suite in PANELS if suite in results]
    if not panels:
        return
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6 * columns, 5 * lines), squeeze=False)
    for ax, suite in zip(axes.flat, panels, strict=False):
        PANELS[suite](ax, results[suite])
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    machine = results["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def train(ax: Any, results: dict[str, Any]) -> None:
    """Tokens a second, and the floor set by products alone."""
    rows = {name: row["tokens_per_second"] for name, row in results["contenders"].items() if "seconds" in row}
    bars = ax.barh(list(rows), list(rows.values()))
    ax.bar_label(bars, fmt="%.0f", fontsize=8)
    ax.axvline(BATCH * TIME / results["floor_seconds"], color="k", linestyle=":", label="products alone")
    ax.invert_yaxis()
    ax.set(title="training, tokens per second")
    ax.legend(fontsize=8)


def decode(ax: Any, results: dict[str, Any]) -> None:
    """Tokens a second by case."""
    names = [case_name(*case) for case in CASES]
    measured = {
        contender: [cases[name]["tokens_per_second"] for name in names]
        for contender, cases in results["contenders"].items()
        if all("tokens_per_second" in cases.get(name, {}) for name in names)
    }
    width = 0.8 / max(len(measured), 1)
    for i, (contender, rates) in enumerate(measured.items()):
        ax.bar([j + i * width for j in range(len(names))], rates, width, label=contender)
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
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
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


def operations(ax: Any, results: dict[str, Any]) -> None:
    """How many times as long as ours each library takes."""
    cases = results["cases"]
    for library in results["versions"]:
        ratios = [
            row[library]["median"] / row["ours"]["median"]
            if "median" in row.get(library, {}) and "median" in row.get("ours", {})
            else float("nan")
            for row in cases.values()
        ]
        ax.semilogy(range(len(cases)), ratios, "o", label=library)
    ax.axhline(1, color="k", linestyle=":")
    ax.set_xticks(range(len(cases)), list(cases), rotation=90, fontsize=7)
    ax.set(title="one operation, forward and backward: time, ours = 1")
    ax.legend(fontsize=8)


PANELS = {
    "train": train, "decode": decode, "kernels": kernels, "scaling": scaling, "operations": operations
}  # fmt: skip
