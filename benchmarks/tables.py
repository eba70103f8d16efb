"""Results as tables in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def table(title: str, *columns: str) -> Table:
    """An empty table, numbers to the right."""
    made = Table(title=title)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made


def show(console: Console, suite: str, results: dict[str, Any]) -> None:
    """Print the results of one suite."""
    console.print(
        {"train": train, "decode": decode, "kernels": kernels, "scaling": scaling, "start": start}[suite](
            results
        )
    )


def train(results: dict[str, Any]) -> Table:
    """Ratios are of tokens per second, ours to each."""
    made = table(
        "training step, batch 8 x 256",
        "",
        "s",
        "min - max",
        "tokens/s",
        "ours is",
        "of the floor",
        "MiB",
        "faults",
    )
    rows = {name: row for name, row in results["contenders"].items() if "seconds" in row}
    ours = rows["ours"]["tokens_per_second"]
    for name, row in rows.items():
        s = row["seconds"]
        made.add_row(
            name,
            f"{s['median']:.3f}",
            f"{s['min']:.3f} - {s['max']:.3f}",
            f"{row['tokens_per_second']:.0f}",
            f"{ours / row['tokens_per_second']:.2f}x",
            f"{row['share_of_floor']:.2f}",
            f"{row['memory_growth_mib']:.0f}",
            f"{row['page_faults_per_step']:.0f}",
        )
    return made


def decode(results: dict[str, Any]) -> Table:
    """Tokens per second, ours to each."""
    made = table("decoding, greedy", "", "case", "tokens/s", "ours is", "of bandwidth")
    for name, cases in results["contenders"].items():
        for case, row in cases.items():
            ours = results["contenders"]["ours"][case]["tokens_per_second"]
            share = f"{row['share_of_bandwidth']:.2f}" if "share_of_bandwidth" in row else ""
            made.add_row(
                name,
                case,
                f"{row['tokens_per_second']:.0f}",
                f"{ours / row['tokens_per_second']:.1f}x",
                share,
            )
    return made


def kernels(results: dict[str, Any]) -> Table:
    """Twins beside references."""
    made = table(
        "fused twins, float32, ms",
        "",
        "forward",
        "backward",
        "reference",
        "faster",
        "of limit",
        "limit",
        "saved MB",
    )
    for name, row in results["kernels"].items():
        fused, reference = row["fused"], row["reference"]
        made.add_row(
            name,
            f"{1e3 * fused['forward']['median']:.2f}",
            f"{1e3 * fused['backward']['median']:.2f}",
            f"{1e3 * (reference['forward']['median'] + reference['backward']['median']):.2f}",
            f"{row['times_faster']:.1f}x",
            f"{row['share_of_limit']:.2f}",
            row["limit"],
            f"{fused['saved_bytes'] / 1e6:.1f}",
        )
    return made


def scaling(results: dict[str, Any]) -> Table:
    """Exponents of seconds against size."""
    made = table("seconds a step grow as size to the power", "", "power", "ms")
    for name in ("batch", "time", "model"):
        times = "  ".join(f"{1e3 * s:.0f}" for s in results[name]["seconds"])
        made.add_row(name, f"{results[name]['exponent']:.2f}", times)
    for name, row in results["threads"].items():
        made.add_row(name, "", f"{1e3 * row['median']:.0f}")
    return made


def start(results: dict[str, Any]) -> Table:
    """Import, and a new process to its first step."""
    made = table("start, s", "", "median", "min", "max")
    for name, row in results.items():
        made.add_row(name.replace("_", " "), f"{row['median']:.2f}", f"{row['min']:.2f}", f"{row['max']:.2f}")
    return made
