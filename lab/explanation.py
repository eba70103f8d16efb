"""`lab explain`: everything about one primitive, from the derivation to numbers that can be followed."""

import html
import inspect
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from lab import formulas
from lab.cases import MAKERS, Case, worked
from lab.checking import gradients_for
from lab.errors import find
from lab.intermediates import Line, shown, watch
from lab.pieces import fragment, page, side_by_side, source_html
from lab.usage import Use, used_by
from tinygrad_ds.gradient_check import GradientReport, gradcheck
from tinygrad_ds.primitive import Primitive
from train.errors import UserError


@dataclass(frozen=True)
class Function:
    """One of a primitive's functions: its name, docstring and source without it."""

    name: str
    derivation: str
    source: str


@dataclass(frozen=True)
class Explanation:
    """One primitive: its functions, its worked example with all intermediates, its check and its uses."""

    name: str
    signature: str
    forward: Function
    backwards: list[Function]
    case: Case
    sent: Any
    lines: dict[str, list[Line]]
    check: GradientReport
    uses: list[Use]

    def __repr__(self) -> str:
        width = shutil.get_terminal_size((110, 40)).columns
        parts = [f"{self.name}{self.signature}", formulas.readable_text(self.forward.derivation)]
        for function in self.backwards:
            parts += [f"── {function.name}", formulas.readable_text(function.derivation)]
        sources = "\n\n".join(function.source for function in self.backwards)
        parts += ["── source", side_by_side(self.forward.source, sources, width)]
        parts += ["── a worked example", self.given()]
        for name, lines in self.lines.items():
            parts += [f"── {name}, line by line", "\n".join(map(line_text, lines))]
        parts += ["── numeric check, on these numbers", str(self.check)]
        parts += ["── in the network", "\n".join(map(str, self.uses)) or "not used by layers/"]
        return "\n\n".join(parts)

    def given(self) -> str:
        """The arrays, the options and the gradient of the worked example."""
        names = argument_names(self.name, len(self.case.arrays))
        lines = [assigned(name, array) for name, array in zip(names, self.case.arrays)]
        lines += [f"{key} = {value!r}" for key, value in self.case.options.items()]
        several = self.sent if isinstance(self.sent, tuple) else (self.sent,)
        for number, g in enumerate(several):
            name = f"g[{number}]" if isinstance(self.sent, tuple) else "g"
            lines.append(assigned(name, g) if g is not None else f"{name} = None")
        return "\n".join(lines)

    def body(self, linked: bool = False) -> str:
        """The explanation as HTML, without the page around it; `linked`: on a page that shows files too."""
        parts = [
            f"<p><code>{html.escape(self.name + self.signature)}</code></p>",
            formulas.html_text(self.forward.derivation),
        ]
        for function in self.backwards:
            parts += [f"<h3><code>{function.name}</code></h3>", formulas.html_text(function.derivation)]
        sources = "".join(source_html(function.source) for function in self.backwards)
        parts.append(
            f"<h3>Source</h3><div class=pair><div>{source_html(self.forward.source)}</div>"
            f"<div>{sources}</div></div>"
        )
        parts.append(f"<h3>A worked example</h3><pre>{html.escape(self.given())}</pre>")
        for name, lines in self.lines.items():
            inner = html.escape("\n".join(map(line_text, lines)))
            parts.append(f"<details><summary>{name}, line by line</summary><pre>{inner}</pre></details>")
        parts.append(f"<h3>Numeric check</h3><pre>{html.escape(str(self.check))}</pre>")
        uses = "".join(f"<li>{use_html(use, linked)}</li>" for use in self.uses)
        parts.append(f"<h3>In the network</h3><ul>{uses or '<li>not used by layers/</li>'}</ul>")
        return "\n".join(parts)

    def page(self) -> str:
        """The explanation as a page of its own."""
        return page(self.name, f"<h1>{self.name}</h1>{self.body()}")

    def _repr_html_(self) -> str:
        return fragment(f"<h2>{self.name}</h2>{self.body()}")


def use_html(use: Use, linked: bool) -> str:
    """A line of the network, with a link to its file."""
    place = f"{use.file}:{use.line}"
    if linked:
        place = f'<a href="#file-{use.file.replace("/", "-")}">{place}</a>'
    return f"{place} <code>{html.escape(use.source)}</code>"


def explain(name: str) -> Explanation:
    """Explain one primitive. Raises UserError with the nearest name if there is none."""
    primitive: Any = find(name)
    if name not in MAKERS:
        raise UserError(f"{name} is no primitive of the engine's own: the lab has no numbers for it")
    case = worked(MAKERS[name])
    forward = watch(primitive.forward, *case.arrays, **case.options)
    y, saved = forward.result
    sent = gradients_for(y)
    functions = backward_functions(primitive)
    lines = {name: forward.lines}
    lines |= {function.__name__: watch(function, saved, sent).lines for function in functions}
    return Explanation(
        name,
        str(inspect.signature(primitive.forward)),
        described(primitive.forward),
        [described(function) for function in functions],
        case,
        sent,
        lines,
        gradcheck(primitive, *case.arrays, **case.options),
        used_by(name),
    )


def backward_functions(primitive: Primitive) -> list[FunctionType]:
    """The derivative, in its two halves where it has two."""
    if primitive.weights:
        return [primitive.__dict__["backward_input"], primitive.__dict__["backward_weight"]]
    return [primitive.__dict__["backward"]]


def described(function: Callable) -> Function:
    """Its docstring, and its source without decorator and docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    source = source[source.index("def ") :]
    start = source.find('"""')
    if start > 0:
        end = source.index('"""', start + 3) + 3
        source = source[:start].rstrip() + source[end:]
    return Function(function.__name__, inspect.getdoc(function) or "", source.rstrip())


def argument_names(name: str, count: int) -> list[str]:
    """What the arrays are called in the forward's signature."""
    parameters = inspect.signature(find(name).forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return names[:count] if names else [f"arrays[{i}]" for i in range(count)]


def assigned(name: str, value: np.ndarray) -> str:
    """`name = value`, a matrix with its rows below each other."""
    return indented(f"{name} = ", shown(value))


def indented(head: str, text: str) -> str:
    """Text behind `head`, its later lines below the first."""
    return head + text.replace("\n", "\n" + " " * len(head))


def line_text(line: Line) -> str:
    """A line of source and below it the values that it made."""
    margin = "    " * line.depth
    rows = [f"{margin}{line.source}"]
    width = min(max((len(value.source) for value in line.values), default=0), 44)
    for value in line.values:
        rows.append(indented(f"{margin}    {value.source.ljust(width)} = ", shown(value.value)))
    return "\n".join(rows)
