"""A function run with every intermediate value written down, line by line.

The function's source is parsed, every operation in it is wrapped in a call that notes the value, and the
result is compiled and run: the numbers are those of the function itself. Helpers of the same file are watched
too.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

WATCHED = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Subscript)
SHOWN = 64  # an array with more entries is described, not shown


class Value(NamedTuple):
    """What an expression, or a name after an assignment, was."""

    source: str
    value: Any


class Line(NamedTuple):
    """A line that ran: its source, how deep in helpers, and the values that it made."""

    source: str
    depth: int
    values: list[Value]


class Watched(NamedTuple):
    """What a call returned, and the lines that led there."""

    result: Any
    lines: list[Line]


class _Notes:
    """Collects lines while the compiled function runs."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.depth = 0

    def line(self, source: str) -> None:
        """A new line begins."""
        self.lines.append(Line(source, self.depth, []))

    def see(self, source: str, value: Any) -> Any:
        """Note a value that is made of numbers, and hand it on."""
        if numbers(value):
            kept = value.copy() if isinstance(value, np.ndarray) else value
            line = self.lines[-1].values
            if not any(earlier.source == source for earlier in line):
                line.append(Value(source, kept))
        return value

    def enter(self, function: Callable) -> Callable:
        """A helper, whose lines stand one step further in."""

        def call(*args: Any, **options: Any) -> Any:
            home = self.lines[-1]
            self.depth += 1
            try:
                return function(*args, **options)
            finally:
                self.depth -= 1
                self.lines.append(Line("", self.depth, home.values))  # what follows belongs to the caller

        return call


class _Wrap(ast.NodeTransformer):
    """Puts notes around operations and before statements."""

    def watch(self, node: ast.expr) -> Any:
        """`node` as an argument of see(..)."""
        source, inner = ast.unparse(node), self.generic_visit(node)
        if isinstance(inner, WATCHED) and ".empty" not in source:  # what is in fresh memory means nothing
            return ast.copy_location(call("see", ast.Constant(source), inner), inner)
        return inner

    def visit(self, node: ast.AST) -> Any:
        """Statements get a line, expressions a note; what is assigned to stays as it is."""
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Return):
            return self.statement(node)
        if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return self.watch(node)
        if isinstance(node, ast.expr | ast.keyword | ast.comprehension | ast.stmt | ast.FunctionDef):
            return self.generic_visit(node)
        return node

    def statement(self, node: ast.Assign | ast.AugAssign | ast.Return) -> list[ast.stmt]:
        """The statement behind a note of its source, and before notes of what it assigned."""
        made: list[ast.stmt] = [ast.Expr(call("line", ast.Constant(ast.unparse(node))))]
        if node.value is not None:
            node.value = self.visit(node.value)
        made.append(node)
        targets = [] if isinstance(node, ast.Return) else getattr(node, "targets", [])
        if isinstance(node, ast.AugAssign):
            targets = [node.target]
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            for name in names:
                held = name.value if isinstance(name, ast.Subscript) else name
                if isinstance(held, ast.Name) and ".empty" not in ast.unparse(node):
                    note = call("see", ast.Constant(held.id), ast.Name(held.id, ast.Load()))
                    made.append(ast.Expr(note))
        return made


def call(method: str, *arguments: ast.expr) -> ast.Call:
    """notes.method(arguments)."""
    return ast.Call(ast.Attribute(ast.Name("_notes", ast.Load()), method, ast.Load()), list(arguments), [])


def numbers(value: Any) -> bool:
    """Whether a value is worth showing: an array, or a number that is no size."""
    return isinstance(value, np.ndarray | np.floating | float) and not isinstance(value, bool)


def watch(function: FunctionType, *args: Any, **options: Any) -> Watched:
    """Call `function(*args, **options)` and note every intermediate array."""
    notes = _Notes()
    scope = dict(function.__globals__)
    scope["_notes"] = notes
    home = scope["__name__"]
    for name, helper in list(scope.items()):
        if isinstance(helper, FunctionType) and helper.__module__ == home and helper is not function:
            if not name.startswith("check") and name not in ("form", "fit", "sum_to"):
                scope[name] = notes.enter(compiled(helper, scope))
    result = compiled(function, scope)(*args, **options)
    return Watched(result, [line for line in tidied(notes.lines) if line.values])


def compiled(function: FunctionType, scope: dict[str, Any]) -> FunctionType:
    """The function with notes, its names looked up in `scope`. One without source is returned as it is."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return function
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        return function
    definition.decorator_list = []
    definition.returns = None
    for argument in [*definition.args.args, *definition.args.kwonlyargs]:
        argument.annotation = None
    definition.body = [part for line in definition.body for part in as_list(_Wrap().visit(line))]
    ast.fix_missing_locations(tree)
    place: dict[str, Any] = {}
    exec(compile(tree, inspect.getfile(function), "exec"), scope, place)
    made = place[definition.name]
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def as_list(made: Any) -> list:
    """What a visitor returned, as statements."""
    return made if isinstance(made, list) else [made]


def tidied(lines: list[Line]) -> list[Line]:
    """Without the empty lines that only lead back from helpers, and without a value that its name repeats."""
    for line in lines:
        last = line.values[-2:]
        if len(last) == 2 and last[1].source.isidentifier() and np.array_equal(last[0].value, last[1].value):
            if not last[0].source.isidentifier():
                del line.values[-2]
    return [line for line in lines if line.source]


def shown(value: Any, digits: int = 4) -> str:
    """An array in a few characters."""
    if isinstance(value, np.ndarray):
        if value.size > SHOWN:
            return f"array of shape {value.shape}"
        if not value.size:
            return f"empty, shape {value.shape}"
        return np.array2string(value, precision=digits, suppress_small=True, separator=", ")
    return f"{value:.{digits}g}"
