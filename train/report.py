"""report.html: what a run did, in one file that needs nothing else."""

import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from layers import DeepSeekConfig
from layers.plan import Part, parts
from train import figures
from train.cache import write_aside
from train.checkpoint import Checkpoints
from train.config import Config
from train.metrics import read_metrics
from train.trainer import Record

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 44rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }}
h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .5rem; border-bottom: 1px solid #e2e8f0; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.sum td {{ font-weight: 600; border-top: 2px solid #718096; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f7fafc; border-left: 3px solid #2b6cb0;
      padding: .6rem .8rem; font-size: .85rem; line-height: 1.4; }}
.big {{ font-size: 1.2rem; }}
</style>
{body}
</html>
"""


def write_report(folder: Path) -> None:
    """Write report.html from what the run's folder holds."""
    page = PAGE.format(
        title=html.escape(f"{folder.name}: a small DeepSeek"), body="\n".join(sections(folder))
    )
    write_aside(folder / "report.html", page.encode())


def sections(folder: Path) -> Iterator[str]:
    """The parts of the page, from the result to the details."""
    records = read_metrics(folder / "metrics.jsonl")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    data = json.loads((folder / "data.json").read_text("utf-8"))
    config = Config.load(folder / "config.toml")
    network = DeepSeekConfig.from_json(Checkpoints(folder / "checkpoints").latest())
    final, baselines = results["bits_per_byte"], results["baselines"]
    xz, primed = baselines["xz -9e"], baselines["xz -9e primed"]

    yield f"<h1>A small DeepSeek, {final:.3f} bits per byte</h1>"
    yield (
        f'<p class="big">The model needs <b>{final:.3f} bits</b> for a byte of text that it has not seen. '
        f"<code>xz -9e</code> needs {xz:.3f} for that text alone, and {primed:.3f} when it may look back at "
        f"the whole training text. The model {verdict(final, xz, primed)}.</p>"
    )
    yield (
        f"<p>{results['steps']:,} steps, {results['tokens']:,.0f} tokens, {results['seconds']:.0f} seconds; "
        f"trained on {size(data['train'])}, judged by {size(data['held_out'])} that are not among them; "
        f"a vocabulary of {data['vocab_size']:,}.</p>"
    )
    yield section("Loss", figures.loss_figure(records), LOSS)
    yield section("Held-out text", figures.held_out_figure(records, final, baselines), HELD_OUT)
    yield section("Experts", figures.load_figure(records), experts_text(records))
    yield section("Gradients", figures.gradient_figure(records), GRADIENTS)
    prompt = html.escape(config.prompt)
    yield section("Samples", samples(records), f"What follows “{prompt}”, at temperature 0.8.")
    yield section("Parameters", parameter_table(network), PARAMETERS)
    yield section("Seconds", figures.phases_figure(results["phases"]), "Where the time went.")
    settings = html.escape((folder / "config.toml").read_text("utf-8"))
    yield section("Settings", f"<pre>{settings}</pre>", SETTINGS)


LOSS = "Pale: every step. Dark: the mean over a fortieth of the run. A sure and right guess would cost 0."
HELD_OUT = (
    "Lower is better. The end of each document is counted in the bits and not in the bytes, for model and "
    "the compressors alike. Bigrams and unigrams are counted in the training text."
)
GRADIENTS = "Before clipping, all parameters of a layer as one vector."
PARAMETERS = (
    "<i>Active</i> is what one token passes through: of the routed experts only those that the router chose. "
    "MTP modules help in training and in speculative decoding; plain generation leaves them out."
)
SETTINGS = "All that is needed to repeat the run: <code>python -m train --config config.toml --out ..</code>"


def size(part: dict[str, int]) -> str:
    """How much text that is."""
    return f"{part['bytes']:,} bytes in {part['documents']:,} documents"


def section(title: str, content: str, text: str) -> str:
    """A heading, a sentence, and what they are about."""
    return f"<h2>{title}</h2>\n<p>{text}</p>\n{content}"


def verdict(final: float, xz: float, primed: float) -> str:
    """How the model stands beside both, in words."""
    if final < primed:
        return "beats both"
    return "beats the first, not the second" if final < xz else "beats neither"


def experts_text(records: Sequence[Record]) -> str:
    """Whether loads are even at the end: the busiest and the idlest expert of the last tenth of the run."""
    last = records[-max(1, len(records) // 10) :]
    relative = []
    for name in records[0]["loads"]:
        loads = [sum(expert) for expert in zip(*(record["loads"][name] for record in last))]
        relative += [load * len(loads) / max(sum(loads), 1) for load in loads]
    if not relative:
        return "This network has no experts."
    most, least = max(relative), min(relative)
    state = "balanced" if most < 1.5 and least > 0.5 else "collapsed" if least < 0.05 else "uneven"
    return (
        "Each line is one expert's share of the tokens; 1 is an even load. Over the last tenth of the run "
        f"the busiest has {most:.2f}, the idlest {least:.2f}: {state}."
    )


def samples(records: Sequence[Record]) -> str:
    """The samples, each with the step it was taken at."""
    return "\n".join(
        f"<p>step {record['step']:,}, {record['seconds']:.0f} s</p><pre>{html.escape(record['sample'])}</pre>"
        for record in records
        if "sample" in record
    )


def parameter_table(config: DeepSeekConfig) -> str:
    """Numbers by part of the network, and how many of them one token passes through."""
    rows = "\n".join(row(part) for part in parts(config))
    total = Part("total", sum(p.total for p in parts(config)), sum(p.active for p in parts(config)))
    head = "<tr><th>part</th><th>parameters</th><th>active</th></tr>"
    return f"<table>\n{head}\n{rows}\n{row(total, 'sum')}\n</table>"


def row(part: Part, kind: str = "part") -> str:
    """One row of the table."""
    return f'<tr class="{kind}"><td>{part.name}</td><td>{part.total:,}</td><td>{part.active:,}</td></tr>'
