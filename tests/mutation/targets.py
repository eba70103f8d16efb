"""What is mutated: every backward function, and the helpers in its file that it calls."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.mutation.mutations import Mutation, mutations
from tinygrad_ds.kernels.table import TWINS

ROOT = Path(__file__).parents[2]
OPS = "tinygrad_ds/ops"
KERNELS = "tinygrad_ds/kernels/cpu"
# Derivatives that a forward computes on its way.
ON_THE_WAY = {
    f"{OPS}/divergence.py": ("jensen_shannon",),
    f"{OPS}/policy.py": ("grpo_objective",),
    f"{KERNELS}/head.py": ("_by_chunks", "_cross_entropy_in_place"),
}
# What derivatives of other files call: the functions, and the primitives on which they are tried.
SHARED = {
    f"{OPS}/broadcast.py": (
        ("sum_to", "fit"),
        ("multiply", "divide", "where", "rmsnorm", "broadcast_to", "einsum"),
    ),
    f"{OPS}/accumulation.py": (("multiply", "_rows_of_product", "_cut"), ()),  # tests of its own alone
}


class Target(NamedTuple):
    """A function to mutate: its file, its name, and the primitives whose derivative it is part of."""

    file: str
    function: str
    primitives: tuple[str, ...]


class Mutant(NamedTuple):
    """One mutation of one target. `number` tells those of a target apart, in order."""

    target: Target
    number: int
    kind: str
    line: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """What equivalents are listed by: it holds no line number."""
        return f"{self.target.file}:{self.target.function}: {self.before}  ->  {self.after}"


def functions(file: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def used(node: ast.AST) -> set[str]:
    """The names that a function mentions."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def reached(start: str, known: dict[str, ast.FunctionDef]) -> set[str]:
    """A function and all helpers of its file that it calls, directly or not."""
    found, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in known and name not in found:
            found.add(name)
            waiting += used(known[name])
    return found


def primitive_of(function: str) -> str:
    """rmsnorm for rmsnorm_backward, linear for linear_backward_weight."""
    return function.split("_backward")[0]


def targets(where: str) -> list[Target]:
    """All targets in ops ("ops"), in the fused kernels ("kernels"), or in both ("all")."""
    found = []
    if where in ("ops", "all"):
        for path in sorted((ROOT / OPS).glob("*.py")):
            found += in_file(f"{OPS}/{path.name}", None)
        found += shared()
    if where in ("kernels", "all"):
        for stem in sorted(set(TWINS["cpu"].values())):
            names = {name for name, module in TWINS["cpu"].items() if module == stem}
            found += in_file(f"{KERNELS}/{stem}.py", names)
    return found


def in_file(file: str, names: set[str] | None) -> Iterator[Target]:
    """The targets of one file; only for the primitives in `names`, if given."""
    known = functions(file)
    roots = [name for name in known if "_backward" in name and not name.startswith("_")]
    covers: dict[str, list[str]] = {}
    for root in roots:
        primitive = primitive_of(root)
        if names is None or primitive in names:
            for name in reached(root, known):
                covers.setdefault(name, []).append(primitive)
    forwards = {primitive_of(root) for root in roots}
    for name in ON_THE_WAY.get(file, ()):
        covers.setdefault(name, []).extend(names or forwards)
        forwards.discard(name)
    for name in known:
        if name in covers and name not in forwards and not name.startswith("check_"):
            yield Target(file, name, tuple(dict.fromkeys(covers[name])))


def shared() -> Iterator[Target]:
    """The targets that several files share."""
    for file, (names, primitives) in SHARED.items():
        for name in names:
            yield Target(file, name, primitives)


@cache
def mutants(target: Target) -> list[tuple[Mutant, Mutation]]:
    """The mutants of one target."""
    found = mutations(functions(target.file)[target.function])
    return [
        (Mutant(target, number, each.kind, each.line, each.before, each.after), each)
        for number, each in enumerate(found)
    ]
