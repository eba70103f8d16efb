"""Train a small DeepSeek on text, and generate from it.

    python -m train demo                                  the default text, about 3 minutes on two cores
    python -m train --text novel.txt notes/ --out runs/mine
    python -m train --resume runs/mine
    python -m train generate runs/mine --prompt "The try statement"
    python -m train extend runs/mine --factor 4           rows four times as long, by YaRN
    python -m train compare-precision                     float32 against FP8 and variations of it
    python -m train schedule dualpipe --ranks 8 --microbatches 20 --svg chart.svg
    python -m train at-scale                              DeepSeek-V3's own training, predicted
    mpiexec -n 4 python -m train --pipeline dualpipe      the same training by four processes

Settings come from --config FILE.toml and from flags, which win. --device cuda computes on an NVIDIA GPU.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

import tinygrad_ds as tg
from layers import generate
from tinygrad_ds.command import with_device
from train import extend, precision_study, run
from train.checkpoint import Checkpoints, load_model
from train.config import DEMO, Config, Parallel
from train.errors import UserError
from train.parallel import launch
from train.parallel.crew import make_team
from train.pipeline import scale_report, show
from train.progress import Display
from train.tokenizer import Tokenizer
from train.trainer import TrainingStopped


@dataclass(frozen=True)
class Train:
    """Train a small DeepSeek on English text, or on your own."""

    settings: tyro.conf.OmitArgPrefixes[Config]
    config: Path | None = None
    """A TOML file of settings, such as a run's config.toml; flags win over it."""
    resume: Path | None = None
    """Go on from the newest checkpoint in the folder of this run, with its settings."""


@dataclass(frozen=True)
class Generate:
    """Write text with the network of a run."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    prompt: str = "The try statement"
    tokens: int = 200
    """How many to write; prompt and answer together end at the length that the network was trained on."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that have this share of the probability."""
    seed: int = 0


@with_device
def main() -> None:
    """Do what the arguments say. Exit code 2 where they, or what they name, cannot be used."""
    code = launch.together(attempt) if launch.under_mpiexec() else attempt()
    if code:
        sys.exit(code)


def attempt() -> int:
    """The exit code of the command, having said what went wrong."""
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def command(arguments: list[str]) -> None:
    """Choose between generating, extending, the demo and training."""
    alone = (["generate"], ["extend"], ["compare-precision"], ["schedule"], ["at-scale"])
    if arguments[:1] in alone and launch.under_mpiexec():
        raise UserError(f"{arguments[0]} is the work of one process: start it without mpiexec")
    if arguments[:1] == ["generate"]:
        write(tyro.cli(Generate, args=arguments[1:], prog="python -m train generate"))
    elif arguments[:1] == ["extend"]:
        extend.extend(tyro.cli(extend.Extend, args=arguments[1:], prog="python -m train extend"), Display())
    elif arguments[:1] == ["compare-precision"]:
        asked = tyro.cli(precision_study.Study, args=arguments[1:], prog="python -m train compare-precision")
        precision_study.study(asked, Display)
    elif arguments[:1] == ["schedule"]:
        show.show(tyro.cli(show.Show, args=arguments[1:], prog="python -m train schedule"))
    elif arguments[:1] == ["at-scale"]:
        scale_report.report(
            tyro.cli(scale_report.AtScale, args=arguments[1:], prog="python -m train at-scale")
        )
    elif arguments[:1] == ["demo"]:
        begin(arguments[1:], DEMO, "python -m train demo")
    else:
        begin(arguments, Config(), "python -m train")


def begin(arguments: list[str], default: Config, program: str) -> None:
    """Train anew or go on. The file or run that the arguments name gives all others their defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--resume", type=Path)
    named, _ = first.parse_known_args(arguments)
    if named.resume:
        default = replace(Config.load(named.resume / "config.toml"), parallel=Parallel())
    elif named.config:
        default = Config.load(named.config)
    asked = tyro.cli(Train, args=arguments, default=Train(default), prog=program, description=__doc__)
    threads = asked.settings.threads
    if threads is None and launch.under_mpiexec():
        threads = 1  # a rank is a core
    if threads is not None:
        try:
            tg.set_threads(threads)
        except ValueError as error:
            raise UserError(str(error)) from error
    display = Display()
    team = make_team(asked.settings, display.say)
    if asked.resume:
        run.resume(asked.resume, default, asked.settings, display, team)
    else:
        run.start(asked.settings, display, team)


def write(asked: Generate) -> None:
    """Print the prompt, then token after token as they are drawn."""
    if not (asked.run / "config.toml").exists():
        raise UserError(f"{asked.run} is no folder of a run: it has no config.toml")
    tokenizer = Tokenizer.load(asked.run)
    model = load_model(Checkpoints(asked.run / "checkpoints").latest())
    ids = tokenizer.encode(asked.prompt) or [tokenizer.end_id]
    room = model.config.max_position_embeddings - len(ids)
    if room < 1:
        raise UserError(
            f"the prompt has {len(ids)} tokens but the network was trained on {len(ids) + room} at once: "
            "shorten it"
        )
    stream = tokenizer.stream()
    print(asked.prompt, end="", flush=True)
    generate(
        model,
        np.array([ids]),
        min(asked.tokens, room),
        temperature=asked.temperature,
        top_p=asked.top_p,
        stop_tokens=tokenizer.end_id,
        seed=asked.seed,
        on_token=lambda row, token: print(stream.push(token), end="", flush=True),
    )
    print(stream.finish())


if __name__ == "__main__":
    main()
