"""Tables about a network for a person: what it has, what it costs, and what its files hold."""

import math
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from layers.config import DeepSeekConfig
from layers.plan import MTP, Part, cache_numbers, count, parts
from layers.roofline import (
    Work,
    cache_bytes,
    decoding_step,
    memory_to_serve,
    memory_to_train,
    prefill,
    training_step,
)
from layers.weights import FILE, INDEX, stored_tensors


def report(
    config: DeepSeekConfig,
    batch: int,
    length: int,
    kind: str,
    flops: float,
    bandwidth: float,
    *,
    recompute: bool = False,
) -> Group:
    """All tables that follow from the config; `kind` is the number format of weights when serving."""
    tables = [
        parameter_table(config),
        cache_table(config, kind),
        memory_table(config, batch, length, kind, recompute=recompute),
        time_table(config, batch, length, kind, flops, bandwidth),
    ]
    shown: list[RenderableType] = [describe(config)]
    for each in tables:
        shown += ["", each]
    return Group(*shown)


def describe(config: DeepSeekConfig) -> str:
    """The network in two lines."""
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace
    experts = f"{config.n_routed_experts} experts, {config.num_experts_per_tok} a token"
    if config.has_correction_bias or config.topk_method == "group_limited_greedy":
        experts += f" from {config.topk_group} of {config.n_group} groups"
    return (
        f"[bold]{config.model_type}[/]: {layers} layers ({dense} dense), hidden size {config.hidden_size}, "
        f"{config.attention_kind.upper()} with {config.num_attention_heads} heads\n"
        f"{experts}, {config.n_shared_experts} shared; vocabulary {config.vocab_size}, "
        f"MTP depth {config.num_nextn_predict_layers}"
    )


def table(title: str, *columns: str) -> Table:
    """An empty table whose first column is words and whose others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made


def parameter_table(config: DeepSeekConfig) -> Table:
    """Parameters in all and active for a token, by part; the modules for MTP below the trunk's sum."""
    made = table("Parameters", "part", "total", "share", "active per token")
    whole = count(config)

    def add(part: Part, style: str = "") -> None:
        share = f"{part.total / whole:.1%}"
        made.add_row(part.name, amount(part.total), share, amount(part.active), style=style)

    every = parts(config)
    for part in every:
        if not part.name.startswith(MTP):
            add(part)
    add(Part("all without MTP", whole, count(config, active=True)), "bold")
    rest = count(config, embedding=False), count(config, active=True, embedding=False)
    add(Part("  and without the embedding", *rest))
    for part in every:
        if part.name.startswith(MTP):
            add(part, "dim")
    if config.num_nextn_predict_layers:
        add(Part("all with MTP", count(config, mtp=True), count(config, active=True, mtp=True)), "bold")
    return made


def cache_table(config: DeepSeekConfig, kind: str) -> Table:
    """Cache for one token, beside what the other kinds of attention with the same heads would keep."""
    made = table("Cache per token", "attention", "numbers", "bytes", "of MHA")
    heads = config.num_attention_heads
    grouped = {"mha": heads, "gqa": config.num_key_value_heads, "mqa": 1}
    kinds = dict.fromkeys(("mla", "mha", config.attention_kind, "mqa"))
    changes = {
        name: {"num_key_value_heads": grouped.get(name), "extra": config.extra | {"attention_kind": name}}
        for name in kinds
    }
    networks = {name: config.replace(**change) for name, change in changes.items()}
    most = cache_numbers(networks["mha"])
    for name, network in networks.items():
        numbers = cache_numbers(network)
        row = f"{numbers:,}", f"{cache_bytes(network, kind):,}", f"{numbers / most:.2%}"
        made.add_row(name.upper(), *row, style="bold" if name == config.attention_kind else "")
    return made


def memory_table(
    config: DeepSeekConfig, batch: int, length: int, kind: str, *, recompute: bool = False
) -> Table:
    """Bytes to train and to serve, by purpose."""
    made = table(f"Memory at batch {batch}, length {length}", "", "bytes")
    for title, needs in {
        f"to train, float32 and AdamW{', blocks computed again' if recompute else ''}": memory_to_train(
            config, batch, length, recompute=recompute
        ),
        f"to serve, {kind}": memory_to_serve(config, batch, length, kind),
    }.items():
        made.add_row(title, size(sum(needs.values())), style="bold")
        for name, needed in needs.items():
            made.add_row(f"  {name}", size(needed))
    return made


def time_table(
    config: DeepSeekConfig, batch: int, length: int, kind: str, flops: float, bandwidth: float
) -> Table:
    """The least time by the roofline for a training step, for reading prompts and for one more token."""
    title = f"Least time at {amount(flops)}FLOP/s and {size(bandwidth)}/s"
    made = table(title, "", "operations", "bytes moved", "time", "tokens/s", "limit")
    works: dict[str, Work] = {
        "a training step": training_step(config, batch, length),
        "reading the prompts": prefill(config, batch, length, kind),
        "one more token each": decoding_step(config, batch, length, kind),
    }
    for name, work in works.items():
        seconds = work.seconds(flops, bandwidth)
        speed = f"{work.tokens / seconds:,.4g}"
        limit = work.limit(flops, bandwidth)
        made.add_row(name, amount(work.flops), size(work.bytes), f"{seconds:.3g} s", speed, limit)
    return made


def file_table(folder: Path) -> Table | None:
    """What the weights in a folder are stored as, None where there are none. Reads only the headers."""
    if not ((folder / FILE).exists() or (folder / INDEX).exists()):
        return None
    made = table("Weights in the folder", "format", "tensors", "numbers", "bytes")
    stored = list(stored_tensors(folder).values())
    for kind in sorted({each.dtype for each in stored}, key=str):
        numbers = [math.prod(each.shape) for each in stored if each.dtype == kind]
        total = sum(numbers)
        made.add_row(str(kind), f"{len(numbers):,}", amount(total), size(total * kind.itemsize))
    return made


def amount(number: float) -> str:
    """671.03 B: a large number with the unit that leaves one to three digits before the point."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:.0f} "


def size(number: float) -> str:
    """1.34 TB: bytes, in powers of 1000."""
    text = amount(number).replace("B", "G")
    return f"{text}B"
