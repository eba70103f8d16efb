"""Bad input, and names that are nearly right."""

import difflib
from collections.abc import Iterable

from tinygrad_ds import primitives
from tinygrad_ds.primitive import Primitive
from train.errors import UserError


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is known. Raises UserError with the nearest known name otherwise."""
    known = sorted(known)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    raise UserError(f"there is no {what} {name!r}: {hint}")


def find(name: str) -> Primitive:
    """The primitive called `name`. Raises UserError with the nearest name if there is none."""
    return primitives[nearest(name, primitives, "primitive")]
