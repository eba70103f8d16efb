"""`lab compare`: a primitive's reference form beside its fused twin, at the standard size in float32."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from lab.cases import MAKERS, standard
from lab.checking import gradients_for
from lab.errors import find
from lab.figures import histogram, logarithms, text_histogram
from lab.pieces import bytes_text, columns, fragment, milliseconds, shape_text, table
from tinygrad_ds import primitives
from tinygrad_ds.gradient_check import relative_errors
from tinygrad_ds.tape import arrays_in
from train.errors import UserError

REPEATS = 9


@dataclass(frozen=True)
class Side:
    """What one form takes: the median of some runs in seconds, and the bytes that backward needs."""

    forward: float
    backward: float
    saved_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Both forms of one primitive. `errors`: of every entry of each output and gradient, the twin against
    the reference."""

    name: str
    shapes: str
    reference: Side
    fused: Side
    errors: dict[str, np.ndarray]

    def rows(self) -> list[tuple]:
        """The table."""
        a, b = self.reference, self.fused
        speed = (a.forward + a.backward) / (b.forward + b.backward)
        return [
            ("forward ms", milliseconds(a.forward), milliseconds(b.forward), f"{a.forward / b.forward:.2f}×"),
            (
                "backward ms",
                milliseconds(a.backward),
                milliseconds(b.backward),
                f"{a.backward / b.backward:.2f}×",
            ),
            (
                "both ms",
                milliseconds(a.forward + a.backward),
                milliseconds(b.forward + b.backward),
                f"{speed:.2f}×",
            ),
            (
                "saved",
                bytes_text(a.saved_bytes),
                bytes_text(b.saved_bytes),
                f"{a.saved_bytes / b.saved_bytes:.2f}×" if b.saved_bytes else "-",
            ),
        ]

    def largest(self) -> str:
        """The largest error of each output and gradient, in words."""
        parts = [f"{name} {values.max(initial=0.0):.1e}" for name, values in self.errors.items()]
        return f"Largest relative error in float32: {', '.join(parts)}."

    def __repr__(self) -> str:
        title = f"{self.name} on {self.shapes}, float32"
        lines = [text_histogram(logarithms(values), name) for name, values in self.errors.items()]
        head = ("", "reference", "fused", "gain")
        return "\n".join([title, "", columns(head, self.rows()), "", self.largest(), *lines])

    def body(self) -> str:
        """The comparison as HTML, without the page around it."""
        return "\n".join(
            [
                f"<p>On {self.shapes}, float32. {self.largest()}</p>",
                table(("", "reference", "fused", "gain"), self.rows()),
                histogram(self.errors, f"{self.name}: fused against reference"),
            ]
        )

    def _repr_html_(self) -> str:
        return fragment(self.body())


def compare(name: str) -> Comparison:
    """Run both forms of a primitive. Raises UserError if it has no fused twin, or none for this size."""
    primitive: Any = find(name)
    if "cpu" not in primitive.fused:
        having = ", ".join(sorted(each.name for each in primitives.values() if "cpu" in each.fused))
        raise UserError(f"{name} has no fused twin to compare with: {having} have one")
    arrays, options = standard(MAKERS[name])
    twin = primitive.fused["cpu"]
    answer = twin.forward(*arrays, **options)
    if answer is NotImplemented:
        raise UserError(f"the twin of {name} does not cover {shape_text(a.shape for a in arrays)}")
    result, saved = primitive.forward(*arrays, **options)
    sent = gradients_for(result)
    pairs = {
        f"output {i}" if isinstance(result, tuple) else "output": pair
        for i, pair in enumerate(zip(parts(answer[0]), parts(result)))
    }
    pairs |= {
        f"gradient {i}": (a, b)
        for i, (a, b) in enumerate(zip(twin.backward(answer[1], sent), primitive.backward(saved, sent)))
        if a is not None
    }
    errors = {
        key: relative_errors(np.asarray(a, np.float64), np.asarray(b, np.float64))
        for key, (a, b) in pairs.items()
        if np.asarray(a).dtype.kind == "f"
    }
    return Comparison(
        name,
        shape_text(array.shape for array in arrays),
        measured(primitive, arrays, options, sent),
        measured(twin, arrays, options, sent),
        errors,
    )


def parts(result: Any) -> tuple:
    """The outputs as a tuple."""
    return tuple(result) if isinstance(result, tuple) else (result,)


def measured(pair: Any, arrays: tuple, options: dict, sent: Any) -> Side:
    """Seconds and bytes of one form."""
    _, saved = pair.forward(*arrays, **options)
    return Side(
        median_seconds(lambda: pair.forward(*arrays, **options)),
        median_seconds(lambda: pair.backward(saved, sent)),
        sum(array.nbytes for array in arrays_in(saved)),
    )


def median_seconds(run: Callable[[], Any]) -> float:
    """The median of some runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(REPEATS):
        began = perf_counter()
        run()
        seconds.append(perf_counter() - began)
    return float(np.median(seconds))
