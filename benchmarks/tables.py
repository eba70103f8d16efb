"""Results as tables in the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from benchmarks.operations.measure import LIBRARIES


def table(title: str, *columns: str) -> Table:
    """An empty table, numbers to the right."""
    made = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made


def show(console: Console, suite: str, results: dict[str, Any]) -> None:
    """Print the results of one suite, and why contenders are missing."""
    console.print(SHOWN[suite](results))
    for name, reason in missing(results):
        console.print(f"{name}: {reason}", markup=False, highlight=False)


def missing(results: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Contenders that could not be measured, with the reason."""
    yield from results.get("missing", {}).items()
    for name, row in results.get("contenders", {}).items():
        for part in (row, *(value for value in row.values() if isinstance(value, dict))):
            if "error" in part:
                yield name, part["error"]
                break


def train(results: dict[str, Any]) -> Table:
    """Ratios are of tokens per second, ours to each."""
    made = table(
        "training step, batch 8 x 256", "", "s", "min - max", "tokens/s", "ours is", "of the floor",
        "MiB", "faults", "first step, s",
    )  # fmt: skip
    for name, row in results["contenders"].items():
        if "seconds" not in row:
            continue
        s = row["seconds"]
        made.add_row(
            name,
            f"{s['median']:.3f}",
            f"{s['min']:.3f} - {s['max']:.3f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['ours_is']:.2f}x" if "ours_is" in row else "",
            f"{row['share_of_floor']:.2f}",
            f"{row['memory_growth_mib']:.0f}",
            f"{row['page_faults_per_step']:.0f}",
            f"{row['first_step_seconds']:.1f}",
        )
    return made


def decode(results: dict[str, Any]) -> Table:
    """Tokens per second, ours to each, and how the step grows from 16 to 512 tokens of context."""
    made = table("decoding, greedy", "", "case", "tokens/s", "min - max", "ours is", "of bandwidth", "growth")
    for name, cases in results["contenders"].items():
        before = None
        for case, row in cases.items():
            if not isinstance(row, dict) or "tokens_per_second" not in row:
                continue
            s, batch = row["seconds_per_step"], case.partition(",")[0]
            behind_more = before is not None and before[0] == batch
            made.add_row(
                name,
                case,
                f"{row['tokens_per_second']:.0f}",
                " - ".join(
                    f"{row['tokens_per_second'] * s['median'] / s[end]:.0f}" for end in ("max", "min")
                ),
                f"{row['ours_is']:.1f}x" if "ours_is" in row else "",
                f"{row['share_of_bandwidth']:.2f}",
                f"{s['median'] / before[1]:.2f}x" if before and behind_more else "",
            )
            before = batch, s["median"]
    return made


def profile(results: dict[str, Any]) -> Table:
    """Shares of a training step."""
    made = table("a training step by primitive, ms", "", "calls", "forward", "backward", "share", "saved MB")
    rows = sorted(results["shares"].items(), key=lambda item: -item[1]["forward"] - item[1]["backward"])
    for name, row in rows:
        share = (row["forward"] + row["backward"]) / results["seconds"]
        times = (f"{1e3 * row[way]:.1f}" for way in ("forward", "backward"))
        made.add_row(name, str(row["calls"]), *times, f"{share:.1%}", f"{row['saved_bytes'] / 1e6:.1f}")
    rest = results["seconds"] - sum(row["forward"] + row["backward"] for _, row in rows)
    made.add_row("everything else", "", "", f"{1e3 * rest:.1f}", f"{rest / results['seconds']:.1%}", "")
    return made


def kernels(results: dict[str, Any]) -> Table:
    """Twins beside references."""
    made = table(
        "fused kernels, float32, ms", "", "forward", "backward", "reference", "faster", "of limit", "limit",
        "saved MB",
    )  # fmt: skip
    for name, row in results["kernels"].items():
        fused = row["fused"]
        made.add_row(
            name,
            f"{1e3 * fused['forward']['median']:.2f}",
            f"{1e3 * fused['backward']['median']:.2f}",
            f"{1e3 * row['reference']['seconds']['median']:.2f}",
            f"{row['times_faster']:.1f}x",
            f"{row['share_of_limit']:.2f}",
            row["limit"],
            f"{fused['saved_bytes'] / 1e6:.1f}",
        )
    return made


def scaling(results: dict[str, Any]) -> Table:
    """Exponents of seconds against size."""
    made = table("seconds a step grow as size to the power", "", "power", "at the end", "ms")
    for name in ("batch", "time", "model"):
        row = results[name]
        times = "  ".join(f"{1e3 * s:.0f}" for s in row["seconds"])
        made.add_row(name, f"{row['exponent']:.2f}", f"{row['last_exponent']:.2f}", times)
    return made


def threads(results: dict[str, Any]) -> Table:
    """What a second thread brings."""
    made = table("threads, ms", "", "one", "two", "faster")
    for name, row in results.items():
        if not isinstance(row, dict) or "1" not in row:
            continue
        one, two = row["1"]["median"], row["2"]["median"]
        made.add_row(name, f"{1e3 * one:.2f}", f"{1e3 * two:.2f}", f"{one / two:.2f}x")
    return made


def start(results: dict[str, Any]) -> Table:
    """Import, and a new process to its first step."""
    made = table("start, s", "", "median", "min", "max")
    for name, row in results.items():
        if isinstance(row, dict) and "median" in row:
            made.add_row(name, *(f"{row[part]:.2f}" for part in ("median", "min", "max")))
    return made


def cold(results: dict[str, Any]) -> Table:
    """The first step that compiles."""
    made = table("first step without compiled kernels", "", "")
    made.add_row("seconds", f"{results['seconds']:.1f}")
    made.add_row("lines that say so", str(len(results["says"])))
    made.add_row("the first of them", next(iter(results["says"]), "none"))
    return made


def operations(results: dict[str, Any]) -> Table:
    """Forward and backward in microseconds, and how many times as fast ours is."""
    made = table("forward and backward of one operation, us", "", *LIBRARIES)
    for name, row in results["cases"].items():
        ours, cells = row.get("ours", {}).get("median"), []
        for library in LIBRARIES:
            median = row.get(library, {}).get("median")
            beside = f" ({median / ours:.1f}x)" if median and ours and library != "ours" else ""
            cells.append(f"{1e6 * median:.0f}{beside}" if median else "")
        made.add_row(name, *cells)
    return made


def fp8(results: dict[str, Any]) -> Table:
    """Quantising beside NumPy and a copy; Linear and training steps beside float32."""
    made = table("in FP8, ms", "", "ours", "beside", "ratio")
    quantise = results["quantise"]
    ours = quantise["fused"]["median"]
    for name, seconds in (
        ("NumPy and ml_dtypes", quantise["NumPy and ml_dtypes"]["median"]),
        ("a copy of the bytes", quantise["copy"]["median"]),
    ):
        row = f"quantise 2048 x 2048; {name}"
        made.add_row(row, f"{1e3 * ours:.2f}", f"{1e3 * seconds:.2f}", f"{ours / seconds:.2f}")
    for name, row in results["linear"].items():
        ours, plain = row["fp8_linear"]["median"], row["linear"]["median"]
        made.add_row(
            f"Linear {name}; float32", f"{1e3 * ours:.2f}", f"{1e3 * plain:.2f}", f"{ours / plain:.2f}"
        )
    plain = results["step"]["float32"]["median"]
    for name in ("FP8", "bfloat16"):
        ours = results["step"][name]["median"]
        row = f"training step in {name}; float32"
        made.add_row(row, f"{1e3 * ours:.0f}", f"{1e3 * plain:.0f}", f"{ours / plain:.2f}")
    return made


def reinforcement(results: dict[str, Any]) -> Group:
    """Steps of GRPO, and tokens a second of a rollout, whose share is of bare decoding's."""
    steps = table("step of GRPO, 32 x 8 completions", "", "s", "min - max", "tokens each", "ours is")
    for name, row in results["contenders"].items():
        if "seconds" in row:
            s = row["seconds"]
            spread = f"{s['min']:.3f} - {s['max']:.3f}"
            ours_is = f"{row['ours_is']:.2f}x" if "ours_is" in row else ""
            steps.add_row(name, f"{s['median']:.3f}", spread, f"{row['length']:.1f}", ours_is)
    tokens = table("256 sequences of 32 tokens", "", "tokens/s", "min - max", "share")
    for name, title in DECODED.items():
        if found := results["decoding"].get(name):
            share = found["median"] / results["decoding"]["bare"]["median"]
            tokens.add_row(
                title, f"{found['median']:.0f}", f"{found['min']:.0f} - {found['max']:.0f}", f"{share:.2f}"
            )
    return Group(steps, tokens)


DECODED = {
    "bare": "bare greedy decoding",
    "rollout": "rollout of 256 prompts",
    "groups": "rollout of 32 prompts, 8 samples each",
}

SHOWN = {
    "train": train, "decode": decode, "profile": profile, "start": start, "cold": cold, "scaling": scaling,
    "threads": threads, "kernels": kernels, "fp8": fp8, "operations": operations,
    "reinforcement": reinforcement,
}  # fmt: skip
