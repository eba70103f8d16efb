"""The command `tinygrad-ds`: what `python -m train` and its siblings do, from any folder.

`python -m train` looks into the current folder first, where somebody may keep a `train.py` of their own; this
command looks only among the installed packages. It finds them by name and imports none of them, because the
engine knows nothing of what is built on it.
"""

import runpy
import sys

COMMANDS = {
    "lab": "study, trace, check and practise every gradient by hand",
    "layers": "what a network has and costs, from its config or checkpoint",
    "posttrain": "teach a trained network to reason, and distil it into smaller ones",
    "train": "train a small DeepSeek on text, and generate from it",
}


def usage() -> str:
    """The help text: one line for each command."""
    lines = "".join(f"  {name:<11}{what}\n" for name, what in COMMANDS.items())
    return f"usage: tinygrad-ds COMMAND [OPTIONS]\n\n{lines}\ntinygrad-ds COMMAND --help says more."


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
