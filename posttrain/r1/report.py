"""report.html of a road: what every stage gained, in one file that needs nothing else."""

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.r1 import figures
from posttrain.r1.road import SETTINGS, Results
from train.cache import write_aside
from train.metrics import read_metrics
from train.report import PAGE, section
from train.trainer import Record

LADDER = {
    "base": "base",
    "zero": "R1-Zero",
    "zero-language": "R1-Zero, one notation",
    "cold": "1 cold start",
    "policy": "2 reinforced",
    "blend": "4 chains and text",
    "no-text": "4 without text",
    "final": "5 the model",
}
REINFORCED = ("zero", "zero-language", "policy", "final")


def write_report(out: Path, results: Results) -> Path:
    """Write report.html into the road's folder, from the results of the stages that are done."""
    page = PAGE.format(
        title=f"{html.escape(out.name)}: the road to R1", body="\n".join(sections(out, results))
    )
    write_aside(out / "report.html", page.encode())
    return out / "report.html"


def sections(out: Path, results: Results) -> Iterator[str]:
    """The parts of the page, as the story goes."""
    told = {name: found["evaluation"] for name, found in results.items() if "evaluation" in found}
    seconds = sum(found["seconds"] for found in results.values())
    yield "<h1>From random weights to a model that thinks, and its students</h1>"
    if "base" in told:
        yield lead(told, seconds)
    runs = {LADDER[name]: records(out, name) for name in REINFORCED if name in told}
    runs = {name: found for name, found in runs.items() if found}
    if runs:
        yield section("Reinforcement", figures.reinforcement_figure(runs, "step"), REINFORCEMENT)
        yield section("The same in seconds", figures.reinforcement_figure(runs, "seconds"), SECONDS)
    ladder = {LADDER[name]: told[name] for name in LADDER if name in told}
    if ladder:
        yield section("The stages", figures.bars_figure(ladder, "pass@1 of every stage"), STAGES)
        some = {name: ladder[LADDER[name]] for name in ("base", "zero", "cold", "final") if name in told}
        renamed = {LADDER[name]: evaluation for name, evaluation in some.items()}
        yield section("Longer problems", figures.level_figure(renamed), LEVELS)
        yield section("All figures", table(ladder), TABLE)
    students = {name: evaluation for name, evaluation in told.items() if name.startswith("student-")}
    if students:
        bars = {"teacher": told["blend"]} if "blend" in told else {}
        bars |= {named(name): evaluation for name, evaluation in students.items()}
        yield section("Students", figures.bars_figure(bars, "pass@1 of teacher and students"), STUDENTS)
        yield table(bars)
    if "final" in told and (last := records(out, "final")):
        preference = results.get("preference", {}).get("lines", [""])[0]
        yield section("Taste", figures.preference_figure(last), TASTE.format(html.escape(preference)))
    if ladder:
        yield section("In their own words", examples(told), "The same prompts, first sample of each network.")
    yield section("Seconds", time_table(results), "Work of each stage; judging it comes on top.")
    settings = html.escape((out / SETTINGS).read_text("utf-8"))
    yield section("Settings", f"<pre>{settings}</pre>", "All that is needed to go this road again.")


REINFORCEMENT = (
    "The mean over each step's completions: pale as it was, dark over five steps. A right answer earns 1, "
    "the one exact shape 0.2. In the last stage general text earns 0 to 1 from the preference; where there "
    "are two notations, stages that are to keep to one earn up to 1 for it. Nothing rewards length, or "
    "thinking as such."
)
SECONDS = "Seconds since the stage began, on the machine that went the road."
STAGES = "Whiskers are standard errors over prompts. No prompt that is judged here was ever trained on."
LEVELS = "How much thought a problem needs grows with its steps."
TABLE = (
    "Each with its standard error, over so many prompts with eight samples each. Bits per byte are of "
    "general text that was held out: what the language cost."
)
STUDENTS = (
    "Small networks with a base of their own, trained as the large one was. Reinforcement brings out what a "
    "base can do; the teacher's chains add what it could not."
)
TASTE = (
    "In the last stage a tenth of the prompts is general text, and a network that prefers real text "
    "rewards it ({}). Above: what it gives. Below: what held-out text costs the policy at the same steps. If "
    "both rise, the reward is being hacked."
)


def lead(told: Mapping[str, Any], seconds: float) -> str:
    """What happened, in a paragraph."""
    base, text = told["base"], []
    text.append(
        f"The base thinks in {base['think_rate']['value']:.0%} of its answers and is right in "
        f"{base['pass_1']['value']:.0%}."
    )
    if zero := told.get("zero"):
        text.append(
            f"Rewarded for right answers it thinks in {zero['think_rate']['value']:.0%} and is right in "
            f"<b>{zero['pass_1']['value']:.0%}</b>. Eight samples of the base held a right answer for "
            f"{base['pass_k']['value']:.0%} of the prompts: {beyond(base, zero)}"
        )
    if final := told.get("final"):
        text.append(f"After all five stages it is right in <b>{final['pass_1']['value']:.0%}</b>.")
    return f'<p class="big">{" ".join(text)}</p>\n<p>{seconds:.0f} seconds of work in all.</p>'


def beyond(base: Mapping[str, Any], zero: Mapping[str, Any]) -> str:
    """What reinforcement found beyond what sampling finds."""
    gain = zero["pass_1"]["value"] - base["pass_k"]["value"]
    error = (zero["pass_1"]["error"] ** 2 + base["pass_k"]["error"] ** 2) ** 0.5
    if gain > 2 * error:
        return f"reinforcement finds {gain:.0%} more in one."
    if gain < -2 * error:
        return f"reinforcement makes a habit of most of it, and falls {-gain:.0%} short of that."
    return "reinforcement makes a habit of that, and adds nothing that could be told from chance."


def named(student: str) -> str:
    """A student's stage, for people."""
    size, *way = student.removeprefix("student-").split("-")
    return f"{size}: {way[0] if way else 'base'}"


def records(out: Path, name: str) -> list[Record]:
    """The metrics of a stage; none where somebody put a checkpoint without metrics in its place."""
    path = out / name / "metrics.jsonl"
    return [record for record in read_metrics(path) if "reward" in record] if path.exists() else []


COLUMNS = {"pass@1": "pass_1", "greedy": "greedy", "think": "think_rate", "length": "length"}


def table(told: Mapping[str, Any]) -> str:
    """A row for each network."""
    k = next(iter(told.values()))["k"]
    columns = COLUMNS | {f"pass@{k}": "pass_k", f"cons@{k}": "cons_k", "mixed": "mixed_rate"}
    head = "".join(f"<th>{name}</th>" for name in ["", *columns, "prompts", "bits/byte"])
    rows = []
    for name, evaluation in told.items():
        cells = [
            f"{evaluation[key]['value']:.{1 if key == 'length' else 3}f}"
            f"<br><small>± {evaluation[key]['error']:.{1 if key == 'length' else 3}f}</small>"
            for key in columns.values()
        ]
        cells += [str(evaluation["pass_1"]["n"]), f"{evaluation['bits_per_byte']:.3f}"]
        rows.append(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    body = "\n".join(rows)
    return f'<div style="overflow-x: auto"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def time_table(results: Results) -> str:
    """Seconds by stage."""
    rows = [
        f"<tr><td>{html.escape(found['title'])}<br><small>{html.escape(found['shows'])}</small></td>"
        f"<td>{found['seconds']:.1f}</td></tr>"
        for found in results.values()
    ]
    total = sum(found["seconds"] for found in results.values())
    rows.append(f'<tr class="sum"><td>total</td><td>{total:.1f}</td></tr>')
    body = "\n".join(rows)
    return f"<table>\n<tr><th>stage</th><th>seconds</th></tr>\n{body}\n</table>"


def examples(told: Mapping[str, Any]) -> str:
    """What some stages said to the same prompts."""
    speakers = [name for name in ("base", "zero", "final") if name in told]
    found = []
    for several in zip(*(told[name]["examples"] for name in speakers)):
        lines = [several[0]["prompt"].strip()]
        for name, each in zip(speakers, several):
            verdict = "right" if each["right"] else "wrong"
            lines.append(f"{LADDER[name]:>12}  [{verdict}] {each['said'].strip()}")
        found.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
    return "\n".join(found)
