"""`lab trace`: one training step, call by call: sizes, seconds, bytes, and the gradient on its way back."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import tinygrad_ds as tg
from lab.graph import module_graph
from lab.pieces import bytes_text, columns, fragment, milliseconds, shape_text, table
from lab.recording import Call, Recorder, norm
from layers import DeepSeekConfig, DeepSeekModel
from tinygrad_ds.device import generator
from train import AdamW, clip_grad_norm
from train.errors import UserError

if TYPE_CHECKING:
    from train.batches import Batch

SMALL = DeepSeekConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    max_position_embeddings=64,
    num_attention_heads=4,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    first_k_dense_replace=1,
    intermediate_size=64,
    moe_intermediate_size=24,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    num_nextn_predict_layers=1,
)
BATCH, TIME = 2, 16


class Total(NamedTuple):
    """Sums over some calls."""

    calls: int
    forward: float
    backward: float
    saved_bytes: int


class Gradient(NamedTuple):
    """How much gradient a parameter got: its norm, and as a share of the parameter's own norm."""

    name: str
    size: int
    norm: float
    relative: float


@dataclass(frozen=True)
class Trace:
    """One step. `calls` are in the order of the forward pass; seconds are of this one step."""

    title: str
    loss: float
    calls: list[Call]
    gradients: list[Gradient]
    clipped_from: float  # norm of all gradients together
    optimizer: float  # seconds of clipping and of the optimizer's step

    def totals(self, key: Callable[[Call], str]) -> dict[str, Total]:
        """Sums of the calls by what `key` says of each, the slowest first."""
        groups: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            groups[key(call)].append(call)
        sums = {name: total(calls) for name, calls in groups.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1].forward - item[1].backward))

    def __repr__(self) -> str:
        return "\n\n".join(
            [
                self.summary(),
                columns(TOTAL_HEAD, total_rows(self.totals(lambda call: call.family), "family")),
                columns(TOTAL_HEAD, total_rows(self.totals(top_module), "module")),
                columns(CALL_HEAD, map(call_row, self.calls), left=(1, 2, 3)),
                columns(GRADIENT_HEAD, map(gradient_row, self.gradients)),
            ]
        )

    def summary(self) -> str:
        """The step in a sentence or two."""
        whole = total(self.calls)
        return (
            f"{self.title}: loss {self.loss:.4f}. {whole.calls} calls, {1e3 * whole.forward:.1f} ms forward, "
            f"{1e3 * whole.backward:.1f} ms backward, {1e3 * self.optimizer:.1f} ms for the optimizer; "
            f"{bytes_text(whole.saved_bytes)} saved for backward; all gradients together have norm "
            f"{self.clipped_from:.4g}."
        )

    def body(self) -> str:
        """The trace as HTML, without the page around it."""
        largest = max((each.relative for each in self.gradients), default=1.0) or 1.0
        shares = [
            (
                *gradient_row(each),
                f'<span class="bar" style="width:{8 * each.relative / largest:.2f}rem"></span>',
            )
            for each in self.gradients
        ]
        family = total_rows(self.totals(lambda call: call.family), "family")
        return "\n".join(
            [
                f"<p>{self.summary()}</p>",
                "<h3>The tape as a graph</h3><p>A box is a call or, with a thick edge, a module; open a "
                "module to see what is in it. Darker: more of the time. Touch a box for its numbers.</p>",
                module_graph(self.calls),
                "<h3>By family</h3>",
                table(TOTAL_HEAD, family),
                "<h3>By module</h3>",
                table(TOTAL_HEAD, total_rows(self.totals(top_module), "module")),
                "<h3>Which parameter gets how much gradient</h3>",
                table([*GRADIENT_HEAD, ""], shares, left=(0, 4)),
                "<h3>Every call</h3><details><summary>all, in the order of the forward pass</summary>",
                table(CALL_HEAD, map(call_row, self.calls), left=(1, 2, 3)),
                "</details>",
            ]
        )

    def _repr_html_(self) -> str:
        return fragment(self.body())


TOTAL_HEAD = ("", "calls", "forward ms", "backward ms", "share", "saved")
CALL_HEAD = (
    "no",
    "primitive",
    "module",
    "in → out",
    "saved",
    "forward ms",
    "backward ms",
    "arriving",
    "leaving",
)
GRADIENT_HEAD = ("parameter", "size", "norm of gradient", "relative to its own")


def total(calls: Iterable[Call]) -> Total:
    """The sums over `calls`."""
    calls = list(calls)
    return Total(
        len(calls),
        sum(call.forward for call in calls),
        sum(call.backward or 0.0 for call in calls),
        sum(call.saved_bytes for call in calls),
    )


def top_module(call: Call) -> str:
    """The block, or part of the model, that a call belongs to: `layers.0`."""
    parts = call.module.split(".")
    return ".".join(parts[: 2 if len(parts) > 1 and parts[1].isdigit() else 1]) or "the loss"


def total_rows(totals: dict[str, Total], what: str) -> list[tuple]:
    """Rows for TOTAL_HEAD, with the sum of all at the end."""
    seconds = sum(each.forward + each.backward for each in totals.values()) or 1.0
    rows = [
        (
            name,
            each.calls,
            milliseconds(each.forward),
            milliseconds(each.backward),
            f"{(each.forward + each.backward) / seconds:.1%}",
            bytes_text(each.saved_bytes),
        )
        for name, each in totals.items()
    ]
    sums = Total(*(sum(column) for column in zip(*totals.values()))) if totals else Total(0, 0.0, 0.0, 0)
    last = milliseconds(sums.forward), milliseconds(sums.backward)
    return [*rows, (f"every {what}", sums.calls, *last, "100.0%", bytes_text(sums.saved_bytes))]


def call_row(call: Call) -> tuple:
    """A row for CALL_HEAD."""
    leaving = " ".join("-" if each is None else f"{each:.2e}" for each in call.leaving)
    return (
        call.number,
        f"{call.name}{' (fused)' if call.fused else ''}",
        call.module or "the loss",
        f"{shape_text(call.inputs)} → {shape_text(call.outputs)}",
        bytes_text(call.saved_bytes),
        milliseconds(call.forward),
        "-" if call.backward is None else milliseconds(call.backward),
        "-" if call.arriving is None else f"{call.arriving:.2e}",
        leaving or "-",
    )


def gradient_row(each: Gradient) -> tuple:
    """A row for GRADIENT_HEAD."""
    return each.name, f"{each.size:,}", f"{each.norm:.3e}", f"{each.relative:.2e}"


@lru_cache(maxsize=2)
def trace(run: Path | str | None = None) -> Trace:
    """Trace one training step of a small network, or of the newest checkpoint of a run's folder on its text.

    A first step that is not looked at lets the kernels compile. Raises UserError for a folder that is no
    run's.
    """
    if run is None:
        ids = generator(0).integers(0, SMALL.vocab_size, (BATCH, TIME + 1))
        model = DeepSeekModel(SMALL, seed=0)
        title = f"A step of a small network on {BATCH} × {TIME} random tokens"
        return trace_step(model, ids[:, :-1], ids[:, 1:], title)
    return trace_run(Path(run))


def trace_run(folder: Path) -> Trace:
    """A step of a run's newest checkpoint on the first rows of its text."""
    model, rows, checkpoint = run_step(folder)
    return trace_step(model, rows.ids, rows.targets, f"A step of {checkpoint}")


def run_step(folder: Path) -> tuple[DeepSeekModel, "Batch", Path]:
    """A run's newest checkpoint as a model, the first rows of its text, the checkpoint's folder.

    Raises UserError for a folder that is no run's.
    """
    from train.batches import TrainingBatches  # late: these load the tokenizer's library
    from train.checkpoint import Checkpoints, load_model
    from train.config import Config
    from train.run import load_data
    from train.tokenizer import Tokenizer

    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} is no folder of a run: it has no config.toml")
    config = Config.load(folder / "config.toml")
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    data = load_data(config, Tokenizer.load(folder), lambda text: None)
    rows = TrainingBatches(data.train, time=config.time, seed=config.seed).rows(0, config.micro_batch)
    return load_model(checkpoint), rows, checkpoint


def trace_step(model: DeepSeekModel, ids: np.ndarray, targets: np.ndarray, title: str) -> Trace:
    """Forward, backward, clipping and an AdamW step of `model`, watched."""
    weights = {"mtp_weight": 0.3 if model.mtp else 0.0, "balance_weight": 1e-4 if model.moe_layers() else 0.0}
    model.loss(ids, targets, **weights).backward()
    AdamW(model, lr=0.0).step()  # moves nothing, but compiles
    model.zero_grad()
    optimizer = AdamW(model, lr=1e-3)
    with tg.observe(Recorder(model)) as recorder:
        loss = model.loss(ids, targets, **weights)
        loss.backward()
    recorder.connect()
    gradients = []
    for name, leaf in model.named_leaves():
        size, grown = norm(leaf.data), 0.0 if leaf.grad is None else norm(leaf.grad)
        gradients.append(Gradient(name, leaf.size, grown, grown / size if size else 0.0))
    began = perf_counter()
    clipped_from = float(clip_grad_norm(model, 1.0))
    optimizer.step()
    optimizer.zero_grad()
    return Trace(title, float(loss), recorder.calls, gradients, clipped_from, perf_counter() - began)
