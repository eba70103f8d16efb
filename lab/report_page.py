"""`lab report`: everything on one page, with an index, a search, and links in all directions."""

import ast
import html
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lab import figures
from lab.cases import MAKERS
from lab.checking import LIMITS, STEPS, Checks, Curve, check
from lab.comparison import compare
from lab.errors import find
from lab.exercises.grading import ladder
from lab.exercises.making import LADDER
from lab.explanation import explain
from lab.overview import Overview, overview
from lab.pieces import bytes_text, page, source_html
from lab.tracing import trace
from lab.usage import ROOT, used_by
from tinygrad_ds import primitives
from train.cache import write_aside
from train.errors import UserError

SEARCH = """
<p><input id="search" type="search" placeholder="search: softmax, router, moe.py .." autocomplete="off"
 style="width:100%;font:inherit;padding:.5rem .7rem;border:1px solid #a0aec0;border-radius:.4rem"></p>
<p id="found" class="quiet"></p>
"""
SCRIPT = """
<script>
const box = document.getElementById("search"), found = document.getElementById("found");
const parts = [...document.querySelectorAll("section[data-name]")];
const texts = parts.map(part => (part.dataset.name + " " + part.textContent).toLowerCase());
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  parts.forEach((part, i) => {
    const hit = words.every(word => texts[i].includes(word));
    part.hidden = !hit; count += hit;
  });
  found.textContent = words.length ? count + " of " + parts.length + " parts" : "";
});
function reveal() {
  const id = decodeURIComponent(location.hash.slice(1));
  const target = id && document.getElementById(id);
  if (!target) return;
  if (target.closest("section[hidden]")) { box.value = ""; box.dispatchEvent(new Event("input")); }
  for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal); reveal();
</script>
"""


class Example(NamedTuple):
    """A lesson: its file, its title and the primitives that it calls by name."""

    file: str
    title: str
    uses: list[str]


@dataclass(frozen=True)
class Report:
    """The page as text; it needs no other file."""

    text: str

    def __repr__(self) -> str:
        parts = self.text.count("<section ")
        return (
            f"The gradient lab as a page: {parts} parts, {bytes_text(len(self.text))}; .write(PATH) keeps it."
        )

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its links and its style stay inside."""
        source = html.escape(self.text)
        return f'<iframe srcdoc="{source}" style="width:100%;height:80vh;min-height:30rem;border:0"></iframe>'

    def write(self, path: Path | str) -> Path:
        """Write the page. Raises UserError where it cannot be written."""
        path = Path(path)
        try:
            write_aside(path, self.text.encode())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        return path


def report() -> Report:
    """Everything on one page: about a minute of checks and timings."""
    return Report(page("The gradient lab", "\n".join(report_parts())))


def report_parts() -> list[str]:
    """The page from the top to the bottom."""
    checks = check()
    listed = overview()
    curves = {curve.name: curve for curve in checks.curves}
    lessons = examples()
    parts = [
        "<h1>The gradient lab</h1>",
        f"<p>{len(primitives)} primitives, each with its derivation, its source, numbers through every step, "
        "its check, and where the network uses it. Everything on this page was computed when it was "
        "written.</p>",
        "<p><code>python -m lab fp8 --html fp8.html</code> shows what FP8 does to numbers.</p>",
        index(listed),
        SEARCH,
        part("list", "All primitives", listed.body(linked=True)),
        part("exercises", "Exercises", exercises_text()),
        part("trace", "A training step", trace().body()),
        part("checks", "All checks", f"{checks_text(checks)}<p class=quiet>{LIMITS}</p>"),
    ]
    parts += [primitive_part(name, curves, lessons) for name in sorted(set(primitives) & set(MAKERS))]
    parts += layer_parts()
    parts.append(part("examples", "Examples", examples_text(lessons)))
    return [*parts, SCRIPT]


def part(name: str, title: str, body: str) -> str:
    """A part of the page that the search shows or hides."""
    return (
        f'<section data-name="{html.escape(title)}" id="{name}"><h2>{html.escape(title)}</h2>{body}</section>'
    )


def index(listed: Overview) -> str:
    """Links to everything."""
    blocks = [
        '<nav><p><a href="#list">list</a><a href="#exercises">exercises</a><a href="#trace">trace</a>'
        '<a href="#checks">checks</a><a href="#layers">layers</a><a href="#examples">examples</a></p>'
    ]
    for family, entries in listed.families().items():
        links = "".join(f'<a href="#{entry.name}">{entry.name}</a>' for entry in entries)
        blocks.append(f"<p><span class=quiet>{family}:</span> {links}</p>")
    return "".join(blocks) + "</nav>"


def primitive_part(name: str, curves: dict[str, Curve], lessons: list[Example]) -> str:
    """The part of one primitive."""
    body = explain(name).body(linked=True)
    if name in curves and curves[name].checked:
        curve = curves[name]
        drawn = figures.v_curve(STEPS, curve.curves, name)
        body += f"<h3>Error against step size</h3><p>{curve.sentence()}</p>{drawn}"
    if "cpu" in find(name).fused:
        body += f"<h3>Reference and fused</h3>{compare(name).body()}"
    links = [f'<a href="#example-{each.file}">{each.title}</a>' for each in lessons if name in each.uses]
    if name in LADDER:
        links.append(f'<a href="#exercise-{name}">the exercise</a>')
    return part(name, name, body + (f"<p>See also: {', '.join(links)}.</p>" if links else ""))


def checks_text(checks: Checks) -> str:
    """The table of all checks, in a fold."""
    return f"<details><summary>{len(checks.curves)} checks</summary>{checks.body()}</details>"


def exercises_text() -> str:
    """The ladder, each step with a link to its primitive."""
    rows = []
    for name, each in LADDER.items():
        task = (each.forward.__doc__ or "").split("\n")[0]
        title = f'<a href="#{name}">{name}</a>' if name in primitives else name
        after = f" <span class=quiet>after {', '.join(each.after)}</span>" if each.after else ""
        rows.append(f'<li id="exercise-{name}">{title}: {html.escape(task)}{after}</li>')
    how = (
        "<p><code>python -m lab exercise NAME</code> writes a file; <code>--grade FILE</code> judges it.</p>"
    )
    return f"<p>{ladder().sentence()}</p>{how}<ol>{''.join(rows)}</ol>"


def layer_parts() -> list[str]:
    """Every file of the network that calls primitives: which, and its source."""
    used: dict[str, set[str]] = defaultdict(set)
    for name in primitives:
        for use in used_by(name):
            used[use.file].add(name)
    blocks = ['<h2 id="layers">Layers</h2><p>Which primitives each file of the network uses.</p>']
    for file in sorted(used):
        links = ", ".join(f'<a href="#{name}">{name}</a>' for name in sorted(used[file]))
        source = source_html((ROOT.parent / file).read_text(encoding="utf-8"))
        fold = f"<details><summary>source</summary>{source}</details>"
        blocks.append(part(f"file-{file.replace('/', '-')}", file, f"<p>{links}</p>{fold}"))
    return blocks


def examples() -> list[Example]:
    """The lessons beside the packages; none where they are not there, as in an installed copy."""
    found = []
    for path in sorted((ROOT.parent / "examples").glob("[0-9][0-9]_*.py")):
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^# # (.+)$", text, flags=re.MULTILINE)
        names = {
            node.attr
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tg"
        }
        found.append(Example(path.stem, title[1] if title else path.stem, sorted(names & set(primitives))))
    return found


def examples_text(lessons: list[Example]) -> str:
    """The lessons and the primitives in them."""
    rows = []
    for each in lessons:
        links = ", ".join(f'<a href="#{name}">{name}</a>' for name in each.uses)
        file = f"<span class=quiet>examples/{each.file}.py</span>"
        uses = f" uses {links}" if links else ""
        rows.append(f'<li id="example-{each.file}">{html.escape(each.title)} {file}{uses}</li>')
    return (
        f"<ul>{''.join(rows)}</ul>" if rows else "<p>The lessons are in the project's folder examples/.</p>"
    )
