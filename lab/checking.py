"""`lab check`: the numeric check of a gradient, and how its error depends on the step.

    d/dx f(x) = (f(x + h) - f(x - h)) / 2h                       error ~ h^2 from truncation
    d/dx f(x) = (8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))) / 12h                  ~ h^4

Both lose digits as h shrinks, for f(x + h) and f(x - h) agree in more and more of theirs: rounding adds about
1e-16 / h. So the error against the step is a V: the truncation falls on its right, rounding rises on its
left. A wrong derivative is a level line at the height of what is wrong.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tinygrad_ds as tg
from lab.cases import MAKERS, cotangent, small, worked
from lab.cases.making import Case
from lab.errors import find
from lab.figures import text_curve, v_curve
from lab.pieces import columns, fragment, table
from lab.state import remember
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.gradient_check import has_surrogate, relative_errors, surrogate_terms
from tinygrad_ds.primitive import Primitive

STEPS = 10.0 ** np.arange(-12, 0)
CASES = 12  # small random ones, beside the worked example
TOLERANCE = 1e-6
LIMITS = (
    "What this shows: a wrong formula cannot hide, for its line does not fall with the step. What it "
    "cannot show: slopes at kinks and ties, where there is none; errors in entries whose gradient is "
    "a thousandth of the largest; whether the forward is the function that was meant; and inputs that no "
    "case has."
)


@dataclass(frozen=True)
class Curve:
    """Errors of one primitive's gradient on its worked example, for each of STEPS, and over random cases."""

    name: str
    second_order: np.ndarray
    fourth_order: np.ndarray
    max_error: float
    checked: int

    @property
    def passed(self) -> bool:
        """Whether every entry of every case is within the tolerance."""
        return self.max_error <= TOLERANCE

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Both curves by name."""
        return {"two points": self.second_order, "four points": self.fourth_order}

    def sentence(self) -> str:
        """The result in words."""
        verdict = "passed" if self.passed else "FAILED"
        if not self.checked:
            return f"{self.name}: {verdict}; it has no gradient that could be checked."
        best = STEPS[int(np.argmin(self.fourth_order))]
        return (
            f"{self.name}: {verdict}, largest relative error {self.max_error:.1e} over {self.checked} "
            f"entries (tolerance {TOLERANCE:.0e}). Four points are best at a step of {best:.0e}."
        )


@dataclass(frozen=True)
class Checks:
    """The numeric checks of some primitives."""

    curves: list[Curve] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all passed."""
        return all(curve.passed for curve in self.curves)

    def __repr__(self) -> str:
        if len(self.curves) > 3:
            return columns(("primitive", "entries", "largest error", ""), map(check_row, self.curves))
        drawn = [f"{curve.sentence()}\n\n{text_curve(STEPS, curve.curves)}" for curve in self.curves]
        return "\n\n".join([*drawn, LIMITS])

    def body(self) -> str:
        """The curves as HTML, without the page around them."""
        if len(self.curves) > 3:
            return table(("primitive", "entries", "largest error", ""), map(check_row, self.curves))
        drawn = [
            f"<p>{curve.sentence()}</p>{v_curve(STEPS, curve.curves, curve.name)}" for curve in self.curves
        ]
        return "\n".join([*drawn, f"<p class=quiet>{LIMITS}</p>"])

    def _repr_html_(self) -> str:
        return fragment(self.body())


def check_row(curve: Curve) -> tuple:
    """A row of the table of many checks."""
    return curve.name, curve.checked, f"{curve.max_error:.1e}", "passed" if curve.passed else "FAILED"


def check(*names: str) -> Checks:
    """Check the gradients of these primitives, or of all. The results are remembered for `lab.list`.

    Raises UserError for a name that is none.
    """
    found = [find(name) for name in names] or list(tg.primitives.values())
    curves = [curve_of(primitive) for primitive in found if primitive.name in MAKERS]
    remember("checks", **{curve.name: curve.max_error for curve in curves})
    return Checks(curves)


def curve_of(primitive: Primitive) -> Curve:
    """One primitive, checked on its worked example at every step, and on small cases at the engine's."""
    maker = MAKERS[primitive.name]
    example = worked(maker)
    reports = [
        tg.gradcheck(primitive, *case.arrays, **case.options) for case in [example, *small(maker, CASES)]
    ]
    second = np.array([largest_error(primitive, example, step, (8, 0)) for step in STEPS])
    fourth = np.array([largest_error(primitive, example, step, (8, 1)) for step in STEPS])
    largest, checked = max(report.max_error for report in reports), sum(report.checked for report in reports)
    return Curve(primitive.name, second, fourth, largest, checked)


def largest_error(primitive: Any, case: Case, step: float, points: tuple[int, int]) -> float:
    """The largest error of any entry against differences: of two points (8, 0), or of four (8, 1)."""

    def outputs(arrays: list) -> list:
        result = primitive.forward(*arrays, **case.options)[0]
        return [np.asarray(y) for y in (result if isinstance(result, tuple) else (result,))]

    y, saved = primitive.forward(*case.arrays, **case.options)
    sent = gradients_for(y)
    given: tuple = primitive.backward(saved, sent)
    each = sent if isinstance(sent, tuple) else (sent,)
    if has_surrogate(primitive):
        outputs = surrogate_terms(primitive, list(case.arrays), case.options, list(each))
        each = (1.0,) * len(outputs(list(case.arrays)))
    worst = 0.0
    for position, analytic in enumerate(given):
        if analytic is None or not is_floating(case.arrays[position].dtype):
            continue
        numeric = np.zeros(analytic.shape)
        for index in np.ndindex(analytic.shape):

            def difference(distance: float, index: tuple = index, position: int = position) -> float:
                ahead, behind = (moved(case.arrays, position, index, d) for d in (distance, -distance))
                pairs = zip(each, outputs(ahead), outputs(behind))
                return sum(float(np.sum(u * (a - b))) for u, a, b in pairs if u is not None)

            near, far = points
            total = near * difference(step) - far * difference(2 * step) if far else near * difference(step)
            numeric[index] = total / ((2 * near - 4 * far) * step)
        worst = max(worst, float(relative_errors(np.asarray(analytic), numeric).max(initial=0.0)))
    return worst


def moved(arrays: tuple[np.ndarray, ...], position: int, index: tuple, distance: float) -> list[np.ndarray]:
    """The arrays with one entry moved."""
    changed = [np.array(array) for array in arrays]
    changed[position][index] += distance
    return changed


def gradients_for(y: Any) -> Any:
    """A gradient for each floating output, in the form that backward takes."""
    if isinstance(y, tuple):
        parts = [np.asarray(part) for part in y]
        return tuple(
            cotangent(part, seed) if is_floating(part.dtype) else None for seed, part in enumerate(parts)
        )
    return cotangent(np.asarray(y))
