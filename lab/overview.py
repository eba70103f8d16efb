"""`lab list`: all primitives by family, what they save, which twins they have, and how their checks went."""

import inspect
import re
from dataclasses import dataclass

import numpy as np

from lab.cases import MAKERS, STANDARD, standard
from lab.formulas import readable_text
from lab.pieces import bytes_text, columns, fragment, shape_text, table
from lab.recording import family_of
from lab.state import remembered
from tinygrad_ds import primitives
from tinygrad_ds.primitive import Primitive
from tinygrad_ds.tape import arrays_in

HEAD = ("primitive", "what", "shapes at the standard size", "saved", "twins", "last check")


@dataclass(frozen=True)
class Entry:
    """One primitive. `checked`: the largest error of its last numeric check, None if there was none."""

    name: str
    family: str
    what: str
    shapes: str
    saved_bytes: int
    twins: str
    checked: float | None


@dataclass(frozen=True)
class Overview:
    """All primitives, family by family."""

    entries: list[Entry]

    def families(self) -> dict[str, list[Entry]]:
        """The entries by family."""
        names = sorted({entry.family for entry in self.entries})
        return {name: [entry for entry in self.entries if entry.family == name] for name in names}

    def __repr__(self) -> str:
        blocks = []
        for family, entries in self.families().items():
            rows = [
                (e.name, e.what, e.shapes, bytes_text(e.saved_bytes), e.twins, error_text(e)) for e in entries
            ]
            blocks.append(f"── {family}\n{columns(HEAD, rows, left=(0, 1, 2, 4))}")
        return "\n\n".join([*blocks, self.note()])

    def note(self) -> str:
        """What the columns mean."""
        sizes = ", ".join(f"{name} {size}" for name, size in STANDARD.items())
        return (
            f"{len(self.entries)} primitives. Saved: what the reference form keeps for backward in float32 "
            f"at the standard size ({sizes}). `python -m lab check` fills the last column."
        )

    def body(self, linked: bool = False) -> str:
        """The list as HTML, without the page around it; `linked`: on a page that explains each."""
        blocks = []
        for family, entries in self.families().items():
            rows = [
                (
                    f'<a href="#{e.name}">{e.name}</a>' if linked else e.name,
                    e.what,
                    e.shapes,
                    bytes_text(e.saved_bytes),
                    e.twins,
                    error_text(e),
                )
                for e in entries
            ]
            blocks.append(f"<h3>{family}</h3>{table(HEAD, rows, left=(0, 1, 2, 4))}")
        return "\n".join([*blocks, f"<p class=quiet>{self.note()}</p>"])

    def _repr_html_(self) -> str:
        return fragment(self.body())


def error_text(entry: Entry) -> str:
    """The last check of an entry."""
    return "-" if entry.checked is None else f"{entry.checked:.1e}"


def overview() -> Overview:
    """All primitives, as they stand."""
    checks = remembered("checks")
    return Overview([entry_of(primitive, checks.get(primitive.name)) for primitive in primitives.values()])


def entry_of(primitive: Primitive, checked: float | None) -> Entry:
    """One line of the list."""
    first = readable_text(inspect.getdoc(primitive.forward) or "").replace("`", "").split("\n")[0]
    what = re.split(r"(?<!\.)\. ", first)[0].rstrip(".")  # the first sentence; ".." stands within one
    shapes, saved_bytes = "", 0
    if primitive.name in MAKERS:
        arrays, options = standard(MAKERS[primitive.name])
        y, saved = primitive.forward(*arrays, **options)
        outputs = y if isinstance(y, tuple) else (y,)
        shapes = f"{shape_text(a.shape for a in arrays)} → {shape_text(np.shape(part) for part in outputs)}"
        saved_bytes = sum(array.nbytes for array in arrays_in(saved))
    return Entry(
        primitive.name,
        family_of(primitive.name),
        what if len(what) <= 60 else f"{what[:57]}...",
        shapes,
        saved_bytes,
        " ".join(primitive.fused) or "-",
        checked,
    )
