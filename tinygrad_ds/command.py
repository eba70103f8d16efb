"""The command `tinygrad-ds`: what `python -m train` and its siblings do, from any folder.

`python -m train` looks into the current folder first, where somebody may keep a `train.py` of their own; this
command looks only among the installed packages. It finds them by name and imports none of them, because the
engine knows nothing of what is built on it.

All of them take `--device cuda`, which `with_device` reads before they see the other arguments.
"""

import runpy
import sys
from collections.abc import Callable
from functools import wraps

from tinygrad_ds.device import DeviceMissing, chosen
from tinygrad_ds.settings import CHOICES

COMMANDS = {
    "lab": "study, trace, check and practise every gradient by hand",
    "layers": "what a network has and costs, from its config or checkpoint",
    "posttrain": "teach a trained network to reason, and distil it into smaller ones",
    "train": "train a small DeepSeek on text, and generate from it",
}


def usage() -> str:
    """The help text: one line for each command."""
    lines = "".join(f"  {name:<11}{what}\n" for name, what in COMMANDS.items())
    return (
        f"usage: tinygrad-ds COMMAND [--device cuda] [OPTIONS]\n\n{lines}\n"
        "tinygrad-ds COMMAND --help says more. With --device cuda it computes on an NVIDIA GPU."
    )


def with_device(main: Callable[[], None]) -> Callable[[], None]:
    """A command that runs on the device that `--device` names among its arguments, or the settings.

    Where that cannot be used, one sentence says what is missing, and the exit code is 2.
    """

    @wraps(main)
    def run() -> None:
        device = taken_from(sys.argv)
        if {"-h", "--help"} & {*sys.argv}:
            device = "cpu"  # help can be read without the GPU
        try:
            with chosen(device):
                main()
        except DeviceMissing as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return run


def taken_from(arguments: list[str]) -> str | None:
    """What `--device` names, taken out of the arguments; exit code 2 where that is no device."""
    place = next((i for i, each in enumerate(arguments) if each.partition("=")[0] == "--device"), None)
    if place is None:
        return None
    _, equals, name = arguments.pop(place).partition("=")
    if not equals:
        name = arguments.pop(place) if place < len(arguments) else ""
    if name not in CHOICES["device"]:
        print(f"error: device is {name!r} but must be {' or '.join(CHOICES['device'])}", file=sys.stderr)
        sys.exit(2)
    return name


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        print(f"tinygrad-ds has no command {name!r}, only: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
