"""Pre-training from text to report: puts data, network, optimizer and loop together in a run's folder."""

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from layers import DeepSeekModel
from layers.module import hollow
from layers.precision import precision
from tinygrad_ds import Tensor
from tinygrad_ds.ops.quantize import Infinities
from train.baselines import measure_baselines
from train.batches import Batch, Tokens, TrainingBatches, tokenize
from train.cache import write_aside
from train.checkpoint import Checkpoints, SaveEvery, load_state, open_model
from train.config import Config
from train.data import Corpus, load_corpus
from train.device_memory import MOVING, OutOfMemory, device_bytes, to_lower, told_where_it_went, too_large
from train.errors import UserError
from train.evaluate import bits_per_byte
from train.metrics import Metrics, read_metrics
from train.muon import Muon
from train.observe import GradientNorms, HeldOut, Samples, TimeLimit
from train.optimizer import AdamW
from train.progress import Display
from train.report import write_report
from train.team import Hook, Team
from train.tokenizer import Tokenizer
from train.trainer import Loss, State, TrainingStopped, Work, figure, train

QUICK_TOKENS = 16_000  # of the held-out text, for a look while the run goes on


class Data(NamedTuple):
    """The text of a run, as ids."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: Tokens
    held_out: Tokens


def start(config: Config, display: Display, team: Team) -> None:
    """A run from its beginning, in a new folder. Raises UserError before anything is written."""
    folder = config.out
    team.first_alone(lambda: refuse_existing(folder), "a look at the folder")
    config.sizes.deepseek(config.sizes.vocab_size, config.time, 0)  # before the text is read: can it be?
    began = perf_counter()
    data = team.in_turn(lambda: load_data(config, None, display.say), "text and tokens")
    sizes = config.sizes.deepseek(data.tokenizer.vocab_size, config.time, data.tokenizer.end_id)
    with hollow():
        model = DeepSeekModel(sizes, seed=None)
    model.recompute = config.recompute
    state = State(total=config.tokens)
    state.phases["text and tokens"] = perf_counter() - began
    team.take(model, lambda model: make_optimizer(config, model), lambda part: part.initialize(config.seed))
    team.first_alone(lambda: write_beginning(folder, config, data), "the run's folder")
    go_on(folder, config, data, team, state, display)


def refuse_existing(folder: Path) -> None:
    """Raise UserError for a folder that is there already."""
    if folder.exists():
        raise UserError(
            f"{folder} exists: go on with `python -m train --resume {folder}`, name another folder by --out, "
            "or delete it"
        )


def write_beginning(folder: Path, config: Config, data: Data) -> None:
    """Make the folder of a run, with its settings, its vocabulary and what its text is. Raises UserError."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; name another folder by --out") from error
    config.save(folder / "config.toml")
    data.tokenizer.save(folder / "tokenizer.json")
    write_json(folder / "data.json", describe(data))


def resume(folder: Path, saved: Config, config: Config, display: Display, team: Team) -> None:
    """Go on from the newest checkpoint of a run, bit for bit as if it had never stopped.

    saved: the settings that the run began with. config: the same but for what is asked now. More tokens
    lengthen the run; the network, the text and the order of its rows are settled. Raises UserError.
    """
    for name, value in settled(config).items():
        if value != settled(saved)[name]:
            raise UserError(
                f"{name} is {settled(saved)[name]} in {folder} and cannot become {value}: start a new run"
            )
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    tokenizer = Tokenizer.load(folder)
    data = team.in_turn(lambda: load_data(config, tokenizer, display.say), "text and tokens")
    began_with = json.loads((folder / "data.json").read_text("utf-8"))["sha256"]
    if data.corpus.sha256 != began_with:
        raise UserError(
            f"the text is not what {folder} began with (sha256 {data.corpus.sha256[:12]}, then "
            f"{began_with[:12]}): start a new run with it"
        )
    team.remembered = latest_loads(folder)
    model, fill = open_model(checkpoint)
    model.recompute = config.recompute
    team.take(model, lambda model: make_optimizer(config, model), fill)
    state = load_state(checkpoint, team.whole_optimizer)
    state.total = config.tokens if config.tokens != saved.tokens else state.total
    if state.done >= state.total:
        raise UserError(
            f"{folder} has finished its {state.total:,.0f} tokens: ask for more, such as "
            f"--tokens {2 * config.tokens}"
        )
    team.first_alone(lambda: config.save(folder / "config.toml"), "the settings")
    display.say(f"going on from {checkpoint}")
    go_on(folder, config, data, team, state, display)


def latest_loads(folder: Path) -> dict[str, np.ndarray]:
    """The tokens of every layer's experts, over the last steps of a run."""
    latest = [record["loads"] for record in read_metrics(folder / "metrics.jsonl")[-20:]]
    return {name: np.sum([loads[name] for loads in latest], axis=0) for name in (latest or [{}])[-1]}


def settled(config: Config) -> dict[str, object]:
    """The settings that a run keeps for good."""
    return vars(config.sizes) | {name: getattr(config, name) for name in ("text", "time", "seed")}


def load_data(config: Config, tokenizer: Tokenizer | None, say: Callable[[str], None]) -> Data:
    """Text, vocabulary (trained on it if there is none yet) and ids."""
    say("reading text")
    corpus = load_corpus(config.text, say)
    tokenizer = tokenizer or Tokenizer.train(corpus.train, config.sizes.vocab_size)
    data = Data(corpus, tokenizer, tokenize(corpus.train, tokenizer), tokenize(corpus.held_out, tokenizer))
    say(
        f"{corpus.train_bytes:,} bytes to train on are {len(data.train):,} tokens of {tokenizer.vocab_size}; "
        f"{corpus.held_out_bytes:,} bytes are held out"
    )
    return data


def describe(data: Data) -> dict:
    """What a run must say about its text."""
    corpus = data.corpus
    return {
        "sha256": corpus.sha256,
        "sources": corpus.sources,
        "train": {"documents": len(corpus.train), "bytes": corpus.train_bytes, "tokens": len(data.train)},
        "held_out": {
            "documents": len(corpus.held_out),
            "bytes": corpus.held_out_bytes,
            "tokens": len(data.held_out),
        },
        "vocab_size": data.tokenizer.vocab_size,
    }


def make_optimizer(config: Config, model: DeepSeekModel) -> AdamW | Muon:
    """The optimizer that the settings name."""
    learning = config.learning
    betas = learning.beta1, learning.beta2
    moments = "bfloat16" if config.precision == "fp8" else None
    if learning.optimizer == "adamw":
        return AdamW(model, lr=learning.lr, betas=betas, weight_decay=learning.weight_decay, moments=moments)
    return Muon(
        model,
        lr=learning.matrix_lr,
        weight_decay=learning.weight_decay,
        adamw_lr=learning.lr,
        betas=betas,
        adamw_decay=learning.weight_decay,
        moments=moments,
    )


def go_on(
    folder: Path,
    config: Config,
    data: Data,
    team: Team,
    state: State,
    display: Display,
) -> None:
    """Train to the end, judge, report."""
    model, learning, schedule = team.model, config.learning, config.schedule
    peak = learning.lr if learning.optimizer == "adamw" else learning.matrix_lr
    batches = TrainingBatches(data.train, time=config.time, seed=config.seed)
    rows = {"batch": config.micro_batch, "time": config.time}
    products, infinities = config.products(), Infinities()

    def next_work(state: State) -> Work:
        first, count = round(state.done) // config.time, schedule.sequences(state.done, state.total)
        starts = range(first, first + count, config.micro_batch)
        parts = [batches.rows(i, min(config.micro_batch, first + count - i)) for i in starts]
        return Work(parts, sum(model.count_targets(part.targets) for part in parts), count * config.time)

    def loss(model: DeepSeekModel, part: Batch, count: object) -> tuple[Tensor, dict[str, float]]:
        early = state.done < learning.mtp_switch * state.total
        weight = (learning.mtp_weight if early else learning.mtp_late_weight) if model.mtp else 0.0
        losses = model.losses(part.ids, part.targets, weight, learning.balance_weight, count=count)
        named = losses._asdict()
        total = named.pop("total")
        return total, {name: figure(value) for name, value in named.items() if value is not None}

    checkpoints = Checkpoints(folder / "checkpoints", config.keep)

    def gradients(model: DeepSeekModel, work: Work, loss: Loss, state: State) -> dict[str, Any]:
        """Those of the team; in FP8 the number of infinities that were made finite is one of the step's."""
        numbers = team.gradients(model, work, loss, state)
        return numbers | {"infinities": infinities.taken()} if config.precision == "fp8" else numbers

    def watch() -> list[Hook]:
        """What is shown, measured and saved."""
        whole, optimizer = team.whole, team.whole_optimizer
        hooks: list[Hook] = [
            HeldOut(whole, data.held_out.thin(QUICK_TOKENS), steps=config.evaluate_every, **rows),
            Samples(whole, data.tokenizer, config.prompt, length=config.time // 2),
            display,
            Metrics(folder / "metrics.jsonl", state.metrics),
            SaveEvery(checkpoints, whole, optimizer, config.save_every),
        ]
        return hooks

    own: list[Hook] = [GradientNorms(model, clip=learning.clip, squares=team.squares)]
    if config.seconds is not None and config.seconds > state.seconds:
        own.insert(0, TimeLimit(config.seconds, before=state.seconds))
    wanted = config.micro_batch, config.time, device_bytes()
    if told := too_large(model.config, *wanted, recompute=config.recompute):
        display.say(told)
    remedy = to_lower(config.micro_batch, config.recompute)
    try:
        with display, told_where_it_went(model, team.optimizer, remedy):
            train(
                model,
                team.optimizer,
                next_work,
                loss,
                state,
                learning_rate=lambda state: peak * schedule.rate(state.step, state.done, state.total),
                clip=learning.clip,
                clip_gradients=team.clip,
                bias_speed=lambda state: (
                    learning.bias_speed * (state.done < learning.bias_until * state.total)
                ),
                gradients=gradients,
                around=lambda: precision(products, seed=state.step, infinities=infinities),
                after=team.after(own, watch),
            )
    except OutOfMemory as error:
        model.zero_grad()
        # several ranks cannot bring their parts together any more
        if team.speaks and team.whole is model and not state.torn:
            checkpoints.save(team.whole, team.whole_optimizer, state)
        moving = MOVING if state.torn else ""
        raise TrainingStopped(f"after step {state.step}: {error} {moving}{checkpoints.told()}") from None
    except (TrainingStopped, FloatingPointError) as error:  # the second: a tile of FP8 that is all NaN
        step = f"step {state.step + 1}: " if isinstance(error, FloatingPointError) else ""
        raise TrainingStopped(f"{step}{error}; {checkpoints.told()}") from None
    if team.speaks:
        judge(folder, data, team.whole, state, display, rows)


def judge(
    folder: Path, data: Data, model: DeepSeekModel, state: State, display: Display, rows: dict[str, int]
) -> None:
    """Measure the whole held-out text and what simpler means make of it; write results and report."""
    display.say("measuring the whole held-out text")
    with state.phase("held-out text"):
        bits = bits_per_byte(model, data.held_out, **rows)
    with state.phase("baselines"):
        baselines = measure_baselines(data.corpus, data.train, data.held_out, data.tokenizer, display.say)
    results = {
        "bits_per_byte": bits,
        "baselines": baselines,
        "steps": state.step,
        "tokens": state.done,
        "seconds": state.seconds,
        "phases": state.phases,
    }
    write_json(folder / "results.json", results)
    write_report(folder)
    display.say(f"held-out: {bits:.3f} bits/byte; xz -9e alone {baselines['xz -9e']:.3f}")
    display.say(f"{folder / 'report.html'} shows the run; `python -m train generate {folder}` writes text")


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file, never half of one."""
    write_aside(path, (json.dumps(value, indent=2) + "\n").encode())
