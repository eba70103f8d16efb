"""Where the network uses each primitive: found in the source by `tg.NAME`, and by watching a step."""

import ast
import inspect
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import layers
from lab.tracing import trace
from tinygrad_ds import primitives

ROOT = Path(inspect.getfile(layers)).parent


class Use(NamedTuple):
    """A line of the network that calls a primitive."""

    file: str
    line: int
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.source}"


@lru_cache(maxsize=1)
def uses() -> dict[str, list[Use]]:
    """primitive -> the lines in layers/ that call it by name."""
    found: dict[str, list[Use]] = defaultdict(list)
    for path in sorted(ROOT.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.expr) and (name := called(node)) in primitives:
                use = Use(f"layers/{path.name}", node.lineno, lines[node.lineno - 1].strip())
                if use not in found[name]:
                    found[name].append(use)
    return dict(found)


def called(node: ast.expr) -> str:
    """The primitive that an expression calls by name, "" if none: tg.softmax(..), a @ b."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return node.func.attr if isinstance(owner, ast.Name) and owner.id == "tg" else ""
    return "matmul" if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) else ""


def used_by(name: str) -> list[Use]:
    """The lines that call a primitive: those that name it, and those that a step was seen to run."""
    named, seen = uses().get(name, []), seen_uses().get(name, [])
    return sorted({*named, *seen})


@lru_cache(maxsize=1)
def seen_uses() -> dict[str, list[Use]]:
    """primitive -> the lines in layers/ that called it in a step of a small network, by operators too."""
    found: dict[str, list[Use]] = defaultdict(list)
    for node in trace().calls:
        file, _, line = node.site.partition(":")
        path = ROOT.parent / file
        if line and path.is_file():
            use = Use(file, int(line), path.read_text(encoding="utf-8").splitlines()[int(line) - 1].strip())
            if use not in found[node.name]:
                found[node.name].append(use)
    return dict(found)
