"""Teach a trained network to reason, and its students too.

    python -m posttrain sft MODEL chains.jsonl          fine-tune on prompts with completions
    python -m posttrain grpo MODEL --task ledger        reinforce right answers
    python -m posttrain reject MODEL --out chains.jsonl sample chains and keep the right ones
    python -m posttrain distill STUDENT chains.jsonl --teacher MODEL
    python -m posttrain eval MODEL                      pass@1, pass@k, cons@k and more, with errors
    python -m posttrain r1 --out runs/r1                all the road to R1, with a report (demo: shorter)
    python -m posttrain chat MODEL                      talk to it; thoughts are dimmed

MODEL is a run's folder or a published checkpoint with its tokenizer.json. A task is ledger, expressions, or a
file of JSON lines. Settings come from --config FILE.toml and from flags, which win; --resume RUN goes on.
--device cuda computes on an NVIDIA GPU.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

import tinygrad_ds as tg
from posttrain import commands, config
from posttrain.chat import chat
from posttrain.config import NOWHERE, load_settings
from posttrain.progress import StageDisplay
from posttrain.r1 import DEMO, Road, go
from tinygrad_ds.command import with_device
from train.errors import UserError
from train.trainer import TrainingStopped


@dataclass(frozen=True)
class Command:
    """One command: its settings with their defaults, and what it does with them."""

    default: Any
    run: Callable[[Any, bool, StageDisplay], None]  # settings, whether the run goes on, display
    resumes: bool = False


COMMANDS = {
    "sft": Command(config.Sft(), commands.sft, resumes=True),
    "grpo": Command(config.Grpo(), commands.grpo, resumes=True),
    "distill": Command(config.Distill(), commands.sft, resumes=True),
    "reject": Command(config.Reject(), lambda asked, going_on, display: commands.rejected(asked, display)),
    "eval": Command(config.Eval(), lambda asked, going_on, display: commands.evaluated(asked, display)),
    "r1": Command(Road(), lambda asked, going_on, display: go(asked, display)),
    "demo": Command(DEMO, lambda asked, going_on, display: go(asked, display)),
    "chat": Command(config.Chat(), lambda asked, going_on, display: chat(asked)),
}


@with_device
def main() -> None:
    """Do what the arguments say. Exit code 2 where they, or what they name, cannot be used."""
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def command(arguments: list[str]) -> None:
    """Find the command, read its settings, run it."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}, only {', '.join(COMMANDS)}")
    chosen = COMMANDS[name]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    first.add_argument("--threads", type=int)
    named, rest = first.parse_known_args(arguments[1:])
    default = chosen.default
    if named.resume and not chosen.resumes:
        raise UserError(f"{name} has nothing to resume: leave --resume out")
    if named.resume or named.config:
        default = load_settings(default, named.config or named.resume / "config.toml")
    asked = tyro.cli(
        type(default),
        config=(tyro.conf.OmitArgPrefixes,),
        args=rest,
        default=default,
        prog=f"python -m posttrain {name}",
        description=f"{type(default).__doc__} Also: --config FILE.toml, --threads N, --resume RUN.",
    )
    if named.resume:
        asked = replace(asked, out=named.resume)
    for setting in ("model", "chains", "teacher"):
        if getattr(asked, setting, None) == NOWHERE:
            raise UserError(f"{name} needs {setting}: python -m posttrain {name} --help")
    if named.threads is not None:
        try:
            tg.set_threads(named.threads)
        except ValueError as error:
            raise UserError(str(error)) from error
    chosen.run(asked, named.resume is not None, StageDisplay())


if __name__ == "__main__":
    main()
