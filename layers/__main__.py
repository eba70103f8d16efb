"""Look at a network without running it.

python -m layers inspect FOLDER: what a checkpoint has and what it costs.

python -m layers inspect config.json --batch 8: a config alone is enough.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from layers.config import ConfigError, DeepSeekConfig
from layers.inspection import file_table, report
from layers.tensor_file import CheckpointError


@dataclass(frozen=True)
class Inspect:
    """Parameters, cache, memory and least time of a network, from its config alone."""

    path: tyro.conf.Positional[Path]
    """A config.json, or a folder that has one."""
    batch: int = 1
    """Sequences at once."""
    length: int = 4096
    """Tokens in each of them."""
    dtype: Literal["float32", "bfloat16", "float16", "float8"] | None = None
    """Number format of the weights when serving; by default that of the file."""
    flops: float = 1e15
    """What the machine computes, in operations per second: an H100 does about 1e15, a CPU core 5e10."""
    bandwidth: float = 3e12
    """What its memory delivers, in bytes per second: an H100 3e12, a desktop computer 3e10."""


def main() -> None:
    """Do what the arguments say. Exit code 2 where they, or what they name, cannot be used."""
    asked = tyro.extras.subcommand_cli_from_dict(
        {"inspect": Inspect}, prog="python -m layers", description=__doc__
    )
    try:
        inspect(asked)
    except (ConfigError, CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def inspect(asked: Inspect) -> None:
    """Print the tables. Raises ValueError for numbers that mean nothing, and for what cannot be read."""
    for name in ("batch", "length", "flops", "bandwidth"):
        if not getattr(asked, name) > 0:
            raise ValueError(f"{name} is {getattr(asked, name)} but must be above 0")
    config = DeepSeekConfig.from_json(asked.path)
    kind = asked.dtype or ("float8" if config.quantization_config else config.torch_dtype or "float32")
    tables = report(config, asked.batch, asked.length, kind, asked.flops, asked.bandwidth)
    files = file_table(asked.path) if asked.path.is_dir() else None
    Console().print(tables, *(["", files] if files else []), sep="\n")


if __name__ == "__main__":
    main()
