"""All that a run needs, as frozen dataclasses: read from flags or TOML, written beside the checkpoints."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from layers import DeepSeekConfig
from layers.config import ConfigError
from layers.precision import EXACT, Bfloat16, Fp8, Products
from train.cache import write_aside
from train.errors import UserError
from train.learning_rate import Schedule


@dataclass(frozen=True)
class Sizes:
    """The network, under the names of the published config.json."""

    vocab_size: int = 4096
    """Tokens that the byte-level BPE may have."""
    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    q_lora_rank: int | None = None
    """None: queries come from hidden states directly."""
    kv_lora_rank: int = 64
    """Numbers that the latent cache keeps for each token and layer, beside the rotary key."""
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    first_k_dense_replace: int = 1
    """Layers, from the bottom, with a dense feed-forward in place of experts."""
    intermediate_size: int = 384
    moe_intermediate_size: int = 128
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    num_nextn_predict_layers: int = 1
    """Depth of multi-token prediction."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def deepseek(self, vocab_size: int, time: int, end_id: int) -> DeepSeekConfig:
        """The config of the network for a vocabulary that is known. UserError where the sizes cannot be."""
        given = asdict(self) | {
            "vocab_size": vocab_size,
            "max_position_embeddings": time,
            "bos_token_id": end_id,
            "eos_token_id": end_id,
        }
        try:
            return DeepSeekConfig(**given)
        except ConfigError as error:
            raise UserError(str(error)) from error


@dataclass(frozen=True)
class Learning:
    """The optimizer and the loss."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon takes the matrices of the layers and leaves the rest to AdamW; adamw takes all."""
    lr: float = 0.05
    """AdamW's highest learning rate (V3: 2.2e-4)."""
    matrix_lr: float = 0.02
    """Muon's highest learning rate."""
    weight_decay: float = 0.0
    """Of matrices (V3: 0.1)."""
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    mtp_weight: float = 0.3
    """Weight of the loss of multi-token prediction, for the first part of the run."""
    mtp_late_weight: float = 0.1
    """Its weight after that."""
    mtp_switch: float = 10 / 14.8
    """Share of the tokens after which that is."""
    balance_weight: float = 1e-4
    """Weight of the sequence-wise balance loss."""
    bias_speed: float = 1e-2
    """How far the router's bias moves in a step, towards even loads (V3: 0.001)."""
    bias_until: float = 14.3 / 14.8
    """Share of the tokens after which it stays."""


@dataclass(frozen=True)
class Parallel:
    """Ranks, which `mpiexec -n 4 python -m train ...` starts, and what they share out. Of this session alone:
    a run may go on with other ranks, or none.
    """

    pipeline: Literal["none", "gpipe", "one_f_one_b", "zb1p", "dualpipe", "dualpipe_v"] = "none"
    """The schedule by which ranks pass micro-batches through the layers; none: every rank has all layers."""
    pipeline_ranks: int | None = None
    """Ranks in a pipeline; several pipelines share each batch. None: as many as there are."""
    expert_ranks: int = 1
    """Ranks among which the experts of a layer are placed."""
    expert_nodes: int = 1
    """Nodes that these ranks are on; groups of experts (n_group) stay on one node."""
    redundant_experts: int = 0
    """Copies of busy experts, beyond one of each, over all these ranks."""
    place_every: int = 0
    """Steps after which experts are placed anew, by their loads since then; 0: only when a run goes on."""
    shard_optimizer: bool = False
    """ZeRO-1: what several ranks hold alike, each steps a share of, and keeps the moments of that alone."""
    trace_step: int = 3
    """The step of this session that pipeline.svg and pipeline.json in the run's folder show; 0: none."""
    timeout: float = 60.0
    """Seconds that a rank waits for others in a step before it ends the run, saying what it waits for; ten
    times as long for what is no part of a step."""

    def __post_init__(self) -> None:
        for name in ("redundant_experts", "place_every", "trace_step"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"{name} is {value} but must be at least 0")
        for name in ("pipeline_ranks", "expert_ranks", "expert_nodes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value} but must be at least 1")
        if self.place_every and self.expert_ranks == 1:
            raise UserError(f"place_every is {self.place_every} but expert_ranks 1: they have no other place")
        if self.timeout <= 0:
            raise UserError(f"timeout is {self.timeout} but must be above 0 seconds")


@dataclass(frozen=True)
class Config:
    """Train a small DeepSeek on English text, or on your own."""

    out: Path = Path("runs/train")
    """Folder of the run; it must not exist."""
    text: tuple[Path, ...] = ()
    """Your own text: UTF-8 files (.gz too) and folders. Without it: documentation that comes with Python."""
    tokens: int = 1_200_000
    """Tokens to train on, repeating the text where it is shorter."""
    time: int = 128
    """Tokens in a sequence."""
    micro_batch: int = 16
    """Sequences that go through the network at once; more of them only add up to a batch."""
    seconds: float | None = None
    """Training is shortened, as soon as that shows, to take no longer from its third step on."""
    seed: int = 0
    threads: int | None = None
    """Threads of BLAS and kernels; None: as many as there are."""
    evaluate_every: int = 50
    """Steps between two looks at the held-out text."""
    save_every: int = 200
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints to keep, the newest."""
    recompute: bool = False
    """Keep the inputs of every layer alone and compute the rest again in backward: less memory, more time."""
    prompt: str = "The try statement"
    """What the samples in the report begin with."""
    sizes: Sizes = Sizes()
    learning: Learning = Learning()
    schedule: Schedule = Schedule(
        warmup_steps=20, constant=0.1, cosine=0.9, floor=0.0, last=0.0, batch=16, first_batch=0
    )
    precision: Literal["float32", "bfloat16", "fp8"] = "float32"
    """Of products with weights. Master weights, their gradients and sums stay float32 in all cases; with fp8
    the moments of AdamW are bfloat16."""
    fp8: Fp8 = Fp8()
    parallel: Parallel = Parallel()

    def __post_init__(self) -> None:
        for name in ("tokens", "time", "micro_batch", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.recompute and self.parallel.expert_ranks > 1:
            raise UserError(
                f"recompute is on and expert_ranks {self.parallel.expert_ranks}, but tokens go to experts "
                "of other ranks once alone: leave one of both away"
            )
        if self.seconds is not None and self.seconds <= 0:
            raise UserError(f"seconds is {self.seconds} but must be above 0, or left away")

    def products(self) -> Products:
        """How the network multiplies while it is trained."""
        return {"float32": EXACT, "bfloat16": Bfloat16(), "fp8": self.fp8}[self.precision]

    def save(self, path: Path) -> None:
        """Write all settings as TOML; what is None stays away."""
        write_aside(path, to_toml(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> "Config":
        """The settings of a TOML file; what it does not name has its default. Raises UserError."""
        try:
            settings = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path} does not exist: name a TOML file of settings, or a run's folder"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as TOML: {error}") from error
        return changed(cls(), settings, str(path))


def changed(default: Any, settings: Mapping[str, Any], source: str) -> Any:
    """A copy of a dataclass instance with the settings of a parsed file, nested ones by table."""
    hints = get_type_hints(type(default))
    changes = {}
    for name, value in settings.items():
        if name not in hints:
            raise UserError(f"{source} sets {name!r}, which is unknown there: only {', '.join(hints)}")
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            changes[name] = changed(getattr(default, name), value, f"[{name}] of {source}")
            continue
        try:
            changes[name] = converted(value, hints[name])
        except (TypeError, ValueError):
            raise UserError(
                f"{source} sets {name} to {value!r}, which is no {describe(hints[name])}"
            ) from None
    return replace(default, **changes)


def converted(value: Any, hint: Any) -> Any:
    """A TOML value as the type that an annotation names. TypeError or ValueError where it is none."""
    if get_origin(hint) is UnionType:  # int | None: what is None is not written
        return converted(value, get_args(hint)[0])
    if get_origin(hint) is tuple:
        return tuple(converted(item, get_args(hint)[0]) for item in [*value])
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError
    return value


def describe(hint: Any) -> str:
    """An annotation in words, for a sentence."""
    return str(hint) if get_origin(hint) else hint.__name__


def to_toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: first the values, then a table for each nested mapping."""
    values = {name: value for name, value in settings.items() if not isinstance(value, Mapping | None)}
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {toml_value(value)}\n" for name, value in values.items()]
    return "".join(lines + [f"\n[{name}]\n{to_toml(table)}" for name, table in tables.items()])


def toml_value(value: Any) -> str:
    """One value. TOML's strings, lists, numbers and booleans are written as JSON's are."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


DEMO = Config(out=Path("runs/demo-text"), seconds=200.0)
