"""One change at a time to a function's syntax tree: the slips that a derivative written by hand can have.

A mutation is found by walking the tree in order and is named by what it does to a line, so that it keeps its
name when lines move: `h = g * weight  ->  h = g / weight`.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
TRANSPOSING = {"swapaxes", "transpose", "T"}
SUMMING = {"sum", "mean", "cumsum", "max"}
UNBROADCAST = {"fit", "sum_to"}


class Mutation(NamedTuple):
    """What was changed: the kind, the statement before and after, and how to make the changed function."""

    kind: str
    line: int
    before: str
    after: str
    bare: ast.FunctionDef
    path: "Path"
    change: Callable[[Any], Any]

    def function(self) -> ast.FunctionDef:
        """The changed function, ready to be compiled."""
        mutant = copy.deepcopy(self.bare)
        put(mutant, self.path, self.change(at(mutant, self.path)))
        return ast.fix_missing_locations(mutant)


def mutations(function: ast.FunctionDef) -> list[Mutation]:
    """All mutations of a function, those of a statement that give the same text once."""
    bare = copy.deepcopy(function)
    bare.decorator_list = []
    if isinstance(bare.body[0], ast.Expr) and isinstance(bare.body[0].value, ast.Constant):
        bare.body = bare.body[1:] or [ast.Pass()]
    found, seen = [], set()
    for path in paths(bare):
        node = at(bare, path)
        for kind, change in changes(node):
            home, inner = statement(bare, path)
            original = ast.unparse(at(bare, home))
            holder = ast.Module([copy.deepcopy(at(bare, home))], [])
            try:
                put(holder, (("body", 0), *inner), change(at(holder, (("body", 0), *inner))))
                text = ast.unparse(ast.fix_missing_locations(holder))
            except (ValueError, TypeError, AttributeError):
                continue
            if text != original and (home, text) not in seen:
                seen.add((home, text))
                before, after = difference(original, text)
                line = getattr(node, "lineno", function.lineno)
                found.append(Mutation(kind, line, before, after, bare, path, change))
    return found


Path = tuple[tuple[str, int | None], ...]


def paths(node: ast.AST, path: Path = ()) -> Iterator[Path]:
    """The way to every node below, in order."""
    for name, value in ast.iter_fields(node):
        if name in ("args", "returns", "ctx") and isinstance(node, ast.FunctionDef):
            continue  # a function's own parameters
        if name == "annotation":
            continue  # says something to people and to mypy
        if isinstance(value, ast.AST):
            yield from ((*path, (name, None)), *paths(value, (*path, (name, None))))
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield from ((*path, (name, place)), *paths(item, (*path, (name, place))))


def at(node: Any, path: Path) -> Any:
    """The node at the end of a path."""
    for name, place in path:
        node = getattr(node, name)
        node = node if place is None else node[place]
    return node


def statement(function: ast.FunctionDef, path: "Path") -> tuple["Path", "Path"]:
    """The path cut in two: to the innermost statement on the way, and from there on."""
    cuts = [n for n in range(1, len(path) + 1) if isinstance(at(function, path[:n]), ast.stmt)]
    return path[: cuts[-1]], path[cuts[-1] :]


def put(node: Any, path: Path, value: Any) -> None:
    """Replace the node at the end of a path; a list stands for several statements."""
    *before, (name, place) = path
    owner = at(node, tuple(before))
    if place is None:
        setattr(owner, name, value)
    elif isinstance(value, list):
        getattr(owner, name)[place : place + 1] = value
    else:
        getattr(owner, name)[place] = value


def difference(before: str, after: str) -> tuple[str, str]:
    """The lines that differ, in short."""
    a, b = before.splitlines(), after.splitlines()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return " ; ".join(line.strip() for line in a), " ; ".join(line.strip() for line in b)


Change = tuple[str, Callable[[Any], Any]]


def changes(node: ast.AST) -> Iterator[Change]:
    """What can be done to one node."""
    if isinstance(node, ast.BinOp):
        yield from of_operation(node)
    elif isinstance(node, ast.UnaryOp):
        yield "sign", lambda n: n.operand
    elif isinstance(node, ast.Constant):
        yield from of_constant(node)
    elif isinstance(node, ast.Compare):
        for other in COMPARISONS.get(type(node.ops[0]), ()):
            yield "comparison", lambda n, other=other: replaced(n, ops=[other(), *n.ops[1:]])
    elif isinstance(node, ast.Call):
        yield from of_call(node)
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield "transposition", lambda n: n.value
    elif isinstance(node, ast.Slice):
        yield from of_slice(node)
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and is_name(node.slice):
        yield "index", lambda n: replaced(n, slice=ast.Constant(0))
    elif isinstance(node, ast.IfExp):
        yield "condition", lambda n: replaced(n, body=n.orelse, orelse=n.body)
    elif isinstance(node, ast.If | ast.While):
        yield "condition", lambda n: replaced(n, test=ast.UnaryOp(ast.Not(), n.test))
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        for place, item in enumerate(node.value.elts):
            if not (isinstance(item, ast.Constant) and item.value is None):
                yield "no gradient", lambda n, place=place: without(n, place)
    elif isinstance(node, ast.Assign):
        yield from of_assignment(node)
    elif isinstance(node, ast.AugAssign):
        yield "drop", lambda n: ast.Pass()
        yield "drop", lambda n: ast.Assign([n.target], n.value)
        if type(node.op) in SWAPS:
            yield "operator", lambda n: replaced(n, op=SWAPS[type(n.op)]())
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "drop", lambda n: ast.Pass()


def of_operation(node: ast.BinOp) -> Iterator[Change]:
    """Another operator, one side alone, and factors of a matrix product exchanged."""
    if isinstance(node.op, ast.MatMult):
        yield "operator", lambda n: replaced(n, left=n.right, right=n.left)
    elif type(node.op) in SWAPS:
        yield "operator", lambda n: replaced(n, op=SWAPS[type(n.op)]())
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitOr | ast.BitAnd):
        yield "drop", lambda n: n.left
        yield "drop", lambda n: n.right


def of_constant(node: ast.Constant) -> Iterator[Change]:
    """Another number, axis or switch."""
    value = node.value
    if isinstance(value, bool):
        yield "constant", lambda n: ast.Constant(not n.value)
    elif isinstance(value, int):
        yield "constant", lambda n: ast.Constant(n.value + 1)
        if value:
            yield "constant", lambda n: ast.Constant(n.value - 1)
    elif isinstance(value, float):
        yield "constant", lambda n: ast.Constant(n.value * 2 + 1)


def of_call(node: ast.Call) -> Iterator[Change]:
    """Without what it sums, transposes or negates; a sum for a mean; another axis."""
    function = node.func
    if isinstance(function, ast.Attribute):
        if function.attr in TRANSPOSING:
            yield "transposition", lambda n: n.func.value
        if function.attr in SUMMING and not is_module(function.value):
            yield "broadcast sum", lambda n: n.func.value
        if function.attr in ("mean", "sum"):
            other = {"mean": "sum", "sum": "mean"}[function.attr]
            yield "operator", lambda n: replaced(n, func=replaced(n.func, attr=other))
    if isinstance(function, ast.Name) and function.id in UNBROADCAST and node.args:
        yield "broadcast sum", lambda n: n.args[0]
    for place, keyword in enumerate(node.keywords):
        if keyword.arg == "axis" and not isinstance(keyword.value, ast.Constant | ast.UnaryOp):
            yield "axis", lambda n, place=place: other_axis(n, place)


def of_slice(node: ast.Slice) -> Iterator[Change]:
    """A slice with one end open."""
    if node.lower is not None:
        yield "slice", lambda n: replaced(n, lower=None)
    if node.upper is not None:
        yield "slice", lambda n: replaced(n, upper=None)


def of_assignment(node: ast.Assign) -> Iterator[Change]:
    """What was saved, taken for zero; and entries that are not written."""
    target = node.targets[0]
    if isinstance(node.value, ast.Name) and node.value.id == "saved" and isinstance(target, ast.Tuple):
        for item in target.elts:
            if isinstance(item, ast.Name) and item.id != "_":
                yield "saved", lambda n, item=item: [n, zeroed(item.id)]
    if isinstance(target, ast.Subscript):
        yield "drop", lambda n: ast.Pass()


def zeroed(name: str) -> ast.stmt:
    """name = 0 * name, in its own dtype."""
    product = ast.BinOp(ast.Constant(0), ast.Mult(), ast.Name(name, ast.Load()))
    return ast.Assign([ast.Name(name, ast.Store())], product)


def without(node: ast.Return, place: int) -> ast.Return:
    """A return of a tuple with None at one place."""
    assert isinstance(node.value, ast.Tuple)
    node.value.elts[place] = ast.Constant(None)
    return node


def other_axis(node: ast.Call, place: int) -> ast.Call:
    """The axis one further on."""
    keyword = node.keywords[place]
    keyword.value = ast.BinOp(keyword.value, ast.Add(), ast.Constant(1))
    return node


def replaced(node: Any, **fields: Any) -> Any:
    """The node with some fields set."""
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def is_name(node: ast.AST) -> bool:
    """A plain name as index."""
    return isinstance(node, ast.Name)


def is_module(node: ast.AST) -> bool:
    """`xp` or `np`, whose functions have no receiver."""
    return isinstance(node, ast.Name) and node.id in ("xp", "np")
