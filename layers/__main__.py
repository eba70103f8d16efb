"""What a network has and costs, and what it says.

python -m layers inspect FOLDER_OR_CONFIG: parameters, cache, memory, time; a config alone is enough.

python -m layers generate FOLDER --prompt "...": text from a published checkpoint with its tokenizer.

With --device cuda it computes on an NVIDIA GPU.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from layers.config import DeepSeekConfig
from layers.generation import generate
from layers.inspection import file_table, report
from layers.pretrained_text import PretrainedText
from layers.speculative import SpeculationStats
from layers.weights import load_pretrained
from tinygrad_ds.command import with_device


@dataclass(frozen=True)
class Inspect:
    """Parameters, cache, memory and least time of a network, from its config alone."""

    path: tyro.conf.Positional[Path]
    """A config.json, or a folder that has one."""
    batch: int = 1
    """Sequences at once."""
    length: int = 4096
    """Tokens in each of them."""
    recompute: bool = False
    """Training computes every block again in backward, for less memory."""
    dtype: Literal["float32", "bfloat16", "float16", "float8"] | None = None
    """Number format of the weights when serving; by default that of the file."""
    flops: float = 1e15
    """What the machine computes, in operations per second: an H100 does about 1e15, a CPU core 5e10."""
    bandwidth: float = 3e12
    """What its memory delivers, in bytes per second: an H100 3e12, a desktop computer 3e10."""


@dataclass(frozen=True)
class Generate:
    """Text after a prompt, or a reply to it, as the checkpoint's own files say where no flag does."""

    folder: tyro.conf.Positional[Path]
    """Of a checkpoint in the published format, with tokenizer.json."""
    prompt: str
    chat: bool = False
    """Take the prompt as a message and reply to it, by the chat template."""
    tokens: int = 200
    """How many to write at most."""
    temperature: float | None = None
    """0 takes the likeliest token each time."""
    top_p: float | None = None
    """Draw from the likeliest tokens that have this share of the probability."""
    seed: int = 0
    speculative: bool = False
    """Draft with the MTP modules, and say how often that went well."""


@with_device
def main() -> None:
    """Do what the arguments say. Exit code 2 where they, or what they name, cannot be used."""
    commands: dict[str, Callable[..., Any]] = {"inspect": Inspect, "generate": Generate}
    asked = tyro.extras.subcommand_cli_from_dict(commands, prog="python -m layers", description=__doc__)
    try:
        inspect(asked) if isinstance(asked, Inspect) else write(asked)
    except ValueError as error:  # ConfigError and CheckpointError are of this kind
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def inspect(asked: Inspect) -> None:
    """Print the tables. Raises ValueError for numbers that mean nothing, and for what cannot be read."""
    for name in ("batch", "length", "flops", "bandwidth"):
        if not getattr(asked, name) > 0:
            raise ValueError(f"{name} is {getattr(asked, name)} but must be above 0")
    config = DeepSeekConfig.from_json(asked.path)
    kind = asked.dtype or ("float8" if config.quantization_config else config.torch_dtype or "float32")
    numbers = asked.batch, asked.length, kind, asked.flops, asked.bandwidth
    tables = report(config, *numbers, recompute=asked.recompute)
    files = file_table(asked.path) if asked.path.is_dir() else None
    Console().print(tables, *(["", files] if files else []), sep="\n")


def write(asked: Generate) -> None:
    """Print token after token. Raises ValueError for a checkpoint or prompt that cannot be used."""
    text = PretrainedText(asked.folder)
    message = [{"role": "user", "content": asked.prompt}]
    ids = text.chat(message) if asked.chat else text.encode(asked.prompt)
    chosen = {"temperature": asked.temperature, "top_p": asked.top_p}
    settings = text.settings | {name: value for name, value in chosen.items() if value is not None}
    model = load_pretrained(asked.folder, mtp=asked.speculative)
    decode, stats = text.stream(), SpeculationStats()
    generate(
        model,
        [ids],
        asked.tokens,
        speculative=asked.speculative,
        seed=asked.seed,
        on_token=lambda row, token: print(decode(token), end="", flush=True),
        stats=stats,
        **settings,
    )
    print()
    if asked.speculative:
        print(stats, file=sys.stderr)


if __name__ == "__main__":
    main()
