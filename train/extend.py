"""Extension of the context by YaRN: a short phase of training on rows that are `factor` times as long.

DeepSeek-V3 was trained at 4K and then brought to 32K and to 128K in 1000 steps each (its report, section
4.3), with YaRN's frequencies (layers/rope.py) and the learning rate at which pre-training ended.

A run can be extended more than once; factors multiply. YaRN's original length stays the one of pre-training,
since it is there that the angles were learnt from nothing: 128 tokens extended 4 times and then twice have
factor 8 over 128. Rates and tokens are in parts of those of the run that is extended, so a second extension
as long as the first wants --rate 1 and its own --tokens.
"""

import html
import json
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import tyro

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel
from layers.config import ConfigError, RopeScaling
from train import run
from train.cache import write_aside
from train.checkpoint import Checkpoints, load_model
from train.config import Config
from train.errors import UserError
from train.positions import (
    Curves,
    html_table,
    nats_by_position,
    perplexity_by_part,
    positions_figure,
    text_table,
)
from train.progress import Display
from train.report import PAGE, section
from train.team import Team
from train.tokenizer import Tokenizer
from train.trainer import State

JUDGED_TOKENS = 16_000  # of the held-out text; each is judged in every part of a row


@dataclass(frozen=True)
class Extend:
    """Extend the context of a trained network by YaRN, in a new run's folder."""

    run: tyro.conf.Positional[Path]
    """The folder of the run whose newest checkpoint is taken. Nothing in it is changed."""
    factor: int = 4
    """How many times as long rows become. Of a run that is itself an extension the factors multiply."""
    tokens: int | None = None
    """Tokens to train on. None: a tenth of those of the run."""
    out: Path | None = None
    """Folder of the new run; it must not exist. None: the run's with -extended behind it."""
    rate: float = 0.1
    """The highest learning rates, in parts of the run's."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this in the original length keep their frequency."""
    beta_slow: float = 1.0
    """Those that turn less often than this are slowed by the factor; between both is a ramp."""
    mscale: float = 1.0
    """Rotated parts grow by m(mscale) / m(mscale_all_dim), or by m(1) if either is 0;
    m(s) = 0.1 s ln(factor) + 1."""
    mscale_all_dim: float = 1.0
    """Scores grow by m(mscale_all_dim)^2."""

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise UserError(f"factor is {self.factor} but must be at least 2: rows have to become longer")
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"tokens is {self.tokens} but must be at least 1")
        for name in ("rate", "beta_slow"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)} but must be above 0")


def extend(asked: Extend, display: Display) -> None:
    """Measure, train on longer rows, measure again, report. Raises UserError before anything is written."""
    began = perf_counter()
    source = Config.load(asked.run / "config.toml")
    config = longer(source, asked)
    folder = config.out
    if folder.exists():
        raise UserError(f"{folder} exists: name another folder by --out, or delete it")
    checkpoint = Checkpoints(asked.run / "checkpoints").latest()
    before = load_model(checkpoint)
    stretched = stretch(before.config, asked)
    if source.threads is not None:
        tg.set_threads(source.threads)
    data = run.load_data(config, Tokenizer.load(asked.run), display.say)
    began_with = json.loads((asked.run / "data.json").read_text("utf-8"))["sha256"]
    if data.corpus.sha256 != began_with:
        raise UserError(
            f"the text is not what {asked.run} was trained on (sha256 {data.corpus.sha256[:12]}, then "
            f"{began_with[:12]}), so what is held out may have been learnt: restore that text"
        )
    judged = data.held_out.thin(max(JUDGED_TOKENS, 2 * config.time))
    old = before.config.max_position_embeddings
    stride = next(old // parts for parts in (4, 2, 1) if old % parts == 0)
    state = State(total=config.tokens)
    state.phases["text and tokens"] = perf_counter() - began

    def measure(model: DeepSeekModel) -> list[float]:
        with state.phase("perplexity by position"):
            rows = {"time": config.time, "stride": stride, "batch": config.micro_batch}
            return perplexity_by_part(nats_by_position(model, judged, **rows), stride)

    display.say(f"{checkpoint} reads {old} tokens at once; judging it on rows of {config.time}")
    as_trained = before.config.replace(max_position_embeddings=config.time)
    model = with_config(before, stretched)
    curves = {"before": measure(with_config(before, as_trained)), "YaRN, untrained": measure(model)}

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; name another folder by --out") from error
    config.save(folder / "config.toml")
    data.tokenizer.save(folder / "tokenizer.json")
    run.write_json(folder / "data.json", run.describe(data))
    model.recompute = config.recompute
    team = Team()
    team.take(model, lambda model: run.make_optimizer(config, model))
    run.go_on(folder, config, data, team, state, display)
    curves["YaRN, trained"] = measure(model)
    report(folder, asked.run, stretched, curves, stride, old)
    display.say(f"perplexity of held-out text by position in rows of {config.time} tokens:")
    display.say(text_table(curves, stride))
    display.say(f"{folder / 'extension.html'} shows it")


def longer(source: Config, asked: Extend) -> Config:
    """The settings of the extension: rows longer and as many times fewer, rates lower, biases at rest.

    As at the end of V3's pre-training, the loss of multi-token prediction has its late weight and the
    routers' biases no longer move.
    """
    factor, learning, schedule = asked.factor, source.learning, source.schedule
    return replace(
        source,
        out=asked.out or asked.run.with_name(f"{asked.run.resolve().name}-extended"),
        tokens=asked.tokens or max(source.tokens // 10, 1),
        time=source.time * factor,
        micro_batch=max(source.micro_batch // factor, 1),
        seconds=None,
        learning=replace(
            learning,
            lr=learning.lr * asked.rate,
            matrix_lr=learning.matrix_lr * asked.rate,
            mtp_weight=learning.mtp_late_weight,
            bias_speed=0.0,
        ),
        schedule=replace(
            schedule,
            batch=max(schedule.batch // factor, 1),
            first_batch=-(-schedule.first_batch // factor),
        ),
    )


def stretch(config: DeepSeekConfig, asked: Extend) -> DeepSeekConfig:
    """The config with YaRN for rows `factor` times as long. Raises UserError where that cannot be."""
    already, length = config.rope_scaling, config.max_position_embeddings
    yarn = RopeScaling(
        factor=asked.factor * (already.factor if already else 1.0),
        original_max_position_embeddings=already.original_max_position_embeddings if already else length,
        beta_fast=asked.beta_fast,
        beta_slow=asked.beta_slow,
        mscale=asked.mscale,
        mscale_all_dim=asked.mscale_all_dim,
    )
    try:
        return config.replace(max_position_embeddings=length * asked.factor, rope_scaling=yarn)
    except ConfigError as error:
        raise UserError(str(error)) from error


def with_config(model: DeepSeekModel, config: DeepSeekConfig) -> DeepSeekModel:
    """A copy of the network with other positions: every weight and bias as in `model`."""
    copy = DeepSeekModel(config, seed=None)
    for ours, theirs in zip(copy.published(), model.published(), strict=True):
        ours.data[...] = theirs.data
    return copy


def report(folder: Path, source: Path, config: DeepSeekConfig, curves: Curves, stride: int, old: int) -> None:
    """The curves into results.json, as a figure of its own, and on a page, extension.html."""
    results = json.loads((folder / "results.json").read_text("utf-8"))
    results["perplexity_by_position"] = {"positions_in_a_part": stride, **curves}
    run.write_json(folder / "results.json", results)
    figure = positions_figure(curves, stride, old)
    write_aside(folder / "perplexity_by_position.svg", figure.encode())
    new, settings = config.max_position_embeddings, json.dumps(config.to_dict()["rope_scaling"], indent=2)
    body = [
        f"<h1>From {old:,} to {new:,} tokens of context</h1>",
        f"<p>The network of <code>{html.escape(str(source))}</code> went on for {results['steps']:,} steps, "
        f"{results['tokens']:,.0f} tokens, in rows of {new:,}. "
        '<a href="report.html">The training itself</a>.</p>',
        section("Perplexity by position", figure + html_table(curves, stride), POSITIONS),
        section("Settings of YaRN", f"<pre>{settings}</pre>", YARN),
    ]
    page = PAGE.format(title=html.escape(f"{folder.name}: longer context"), body="\n".join(body))
    write_aside(folder / "extension.html", page.encode())


POSITIONS = (
    "On held-out text; lower is better. Every token is judged once in every part of a row, so that parts "
    "differ only by how much stands before a token. <i>Before</i>: the network as it was, beyond what it "
    "was trained on. <i>Untrained</i>: the same weights with YaRN's angles."
)
YARN = "As in the config.json of the checkpoints; factor and original length count from pre-training."
