"""Analytic gradients against numeric ones, with a report that a person can read.

For an output y and a cotangent u, the scalar u . y has the derivative in one input entry x_i

    d/dx_i = (8 [f(x_i + h) - f(x_i - h)] - [f(x_i + 2h) - f(x_i - 2h)]) / 12h,    f = u . y

with a truncation error of order h^4. The differences are taken entry by entry before the sum, so that
rounding in entries which x_i does not reach cancels exactly.

The error of an entry is relative:

    |analytic - numeric| / max(|analytic|, |numeric|, 1e-3 of the largest entry)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds import settings, walk
from tinygrad_ds.device import generator, to_host
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.primitive import Primitive
from tinygrad_ds.tape import Node

STEP = 1e-4
FLOOR = 1e-3


class Entry(NamedTuple):
    """One entry of one input's gradient."""

    input: int
    element: tuple[int, ...]
    analytic: float
    numeric: float
    error: float


@dataclass
class GradientReport:
    """What a gradient check found. `worst`: entries with the largest errors; `hints`: what they suggest."""

    passed: bool
    max_error: float
    tolerance: float
    checked: int
    worst: list[Entry] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        lines = [
            f"gradient check {verdict}: largest relative error {self.max_error:.2e} "
            f"over {self.checked} entries (tolerance {self.tolerance:.0e})"
        ]
        if self.worst and not self.passed:
            lines.append(
                f"{'input':>5}  {'element':<14}{'analytic':>16}{'numeric':>16}{'ratio':>12}{'error':>10}"
            )
            for entry in self.worst:
                ratio = entry.analytic / entry.numeric if entry.numeric else float("nan")
                lines.append(
                    f"{entry.input:>5}  {entry.element!s:<14}{entry.analytic:>16.8g}{entry.numeric:>16.8g}"
                    f"{ratio:>12.5g}{entry.error:>10.1e}"
                )
        return "\n".join(lines + [f"hint: {hint}" for hint in self.hints])

    __repr__ = __str__


def gradcheck(
    function: Callable,
    *arrays: Any,
    tolerance: float = 1e-6,
    step: float = STEP,
    seed: int = 0,
    **options: Any,
) -> GradientReport:
    """Check the gradients of `function(*arrays, **options)` in float64, a primitive or a function of Tensors.

    arrays: floating ones are cast to float64 and checked entry by entry; others are passed as they are. A
    primitive is checked on plain arrays with its reference pair (or with its declared surrogate), a function
    through the tape.
    """
    hosts = [to_host(a.data if isinstance(a, Node) else a) for a in arrays]
    doubles = [np.array(a, dtype=np.float64) if is_floating(a.dtype) else a for a in hosts]
    if not isinstance(function, Primitive):
        value, gradients = _tape_pair(function, options)
        return check_pair(value, gradients, doubles, tolerance=tolerance, step=step, seed=seed)
    value, gradients = _primitive_pair(function, options)
    terms = partial(surrogate_terms, function, doubles, options) if has_surrogate(function) else None
    return check_pair(value, gradients, doubles, terms, tolerance=tolerance, step=step, seed=seed)


def check_pair(
    value: Callable,
    gradients: Callable,
    arrays: list,
    terms: Callable | None = None,
    *,
    tolerance: float = 1e-6,
    step: float = STEP,
    seed: int = 0,
) -> GradientReport:
    """Check `gradients(arrays, cotangents) -> list` against differences of `value(arrays) -> outputs`.

    terms: of a surrogate; `terms(cotangents)(arrays)` takes the place of the outputs times their cotangents.
    """
    outputs = value(arrays)
    draw = generator(seed)
    cotangents = [draw.normal(size=y.shape) if is_floating(y.dtype) else None for y in outputs]
    given = gradients(arrays, cotangents)
    if terms is not None:
        value = terms(cotangents)
        cotangents = [1.0] * len(value(arrays))
    entries: list[Entry] = []
    hints: list[str] = []
    for position, (array, analytic) in enumerate(zip(arrays, given, strict=True)):
        if not is_floating(array.dtype) or analytic is None:
            continue
        analytic = np.asarray(analytic)
        if analytic.shape != array.shape:
            hints.append(_shape_hint(position, analytic.shape, array.shape))
            entries.append(Entry(position, (), float("nan"), float("nan"), float("inf")))
            continue
        numeric = numeric_gradient(value, arrays, position, cotangents, step)
        entries += _compare(position, analytic, numeric)
        if any(entry.error > tolerance for entry in entries if entry.input == position):
            hints += _pattern_hints(position, analytic, numeric)
    entries.sort(key=lambda entry: -entry.error)
    largest = entries[0].error if entries else 0.0
    return GradientReport(
        bool(largest <= tolerance), float(largest), tolerance, len(entries), entries[:8], hints
    )


def numeric_gradient(
    value: Callable, arrays: list, position: int, cotangents: list, step: float = STEP, where: Any = None
) -> np.ndarray:
    """Numeric dL/dx for input `position`, L = sum of cotangent . output. `where`: only these indices."""
    grad = np.zeros(arrays[position].shape)
    moved = [array.copy() if place == position else array for place, array in enumerate(arrays)]
    x = moved[position]

    def difference(index: tuple, distance: float) -> float:
        here = x[index]
        x[index] = here + distance
        ahead = [np.array(y) for y in value(moved)]
        x[index] = here - distance
        behind = [np.array(y) for y in value(moved)]
        x[index] = here
        return sum(
            float(np.sum(u * (a - b)))
            for u, a, b in zip(cotangents, ahead, behind, strict=True)
            if u is not None
        )

    for index in np.ndindex(x.shape) if where is None else where:
        grad[index] = (8 * difference(index, step) - difference(index, 2 * step)) / (12 * step)
    return grad


def _primitive_pair(primitive: Any, options: dict) -> tuple[Callable, Callable]:
    """Value and gradients of a primitive on plain arrays."""

    def value(arrays: list) -> list:
        return _as_list(primitive.forward(*arrays, **options)[0])

    def gradients(arrays: list, cotangents: list) -> list:
        result, saved = primitive.forward(*arrays, **options)
        return list(
            primitive.backward(saved, tuple(cotangents) if isinstance(result, tuple) else cotangents[0])
        )

    return value, gradients


def has_surrogate(primitive: Any) -> bool:
    """Whether the backward is by convention the derivative of something else than the forward."""
    return "surrogate" in primitive.__dict__


def surrogate_terms(primitive: Any, arrays: list, options: dict, cotangents: list) -> Callable:
    """The surrogate's terms as a function of the arrays.

    Held fixed are what the forward saved at `arrays`, and the cotangents, one for every output.
    """
    result, saved = primitive.forward(*arrays, **options)
    sent = tuple(cotangents) if isinstance(result, tuple) else cotangents[0]
    terms = primitive.surrogate(saved, sent)
    return lambda moved: _as_list(terms(*moved))


def _as_list(result: Any) -> list:
    """The arrays of a result."""
    return [np.asarray(y) for y in (result if isinstance(result, tuple) else (result,))]


def _tape_pair(function: Callable, options: dict) -> tuple[Callable, Callable]:
    """Value and gradients of a function of Tensors, through the tape."""

    def call(arrays: list, requires_grad: bool) -> tuple[list, tuple]:
        inputs = [Node.public(a, requires_grad=requires_grad and is_floating(a.dtype)) for a in arrays]
        result = function(*inputs, **options)
        return inputs, result if isinstance(result, tuple) else (result,)

    def value(arrays: list) -> list:
        with settings.no_grad():
            return [to_host(y.data) for y in call(arrays, False)[1]]

    def gradients(arrays: list, cotangents: list) -> list:
        inputs, outputs = call(arrays, True)
        walk.backward(
            [(y, u) for y, u in zip(outputs, cotangents, strict=True) if u is not None and y.requires_grad]
        )
        return [np.zeros(x.data.shape) if x.grad is None else to_host(x.grad) for x in inputs]

    return value, gradients


def relative_errors(analytic: np.ndarray, numeric: np.ndarray) -> np.ndarray:
    """Entry by entry, as the head of this module says; what is not finite counts as an infinite error."""
    if not analytic.size:
        return np.zeros(analytic.shape)
    largest = max(np.abs(analytic).max(), np.abs(numeric).max())
    scale = np.maximum(np.maximum(np.abs(analytic), np.abs(numeric)), FLOOR * largest)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(analytic == numeric, 0.0, np.abs(analytic - numeric) / scale)
    return np.where(np.isfinite(error), error, np.inf)


def _compare(position: int, analytic: np.ndarray, numeric: np.ndarray) -> list[Entry]:
    errors = relative_errors(analytic, numeric)
    return [
        Entry(position, index, float(analytic[index]), float(numeric[index]), float(errors[index]))
        for index in np.ndindex(analytic.shape)
    ]


def _shape_hint(position: int, got: tuple, wanted: tuple) -> str:
    hint = f"the gradient of input {position} has shape {got} but the input has {wanted}"
    if np.prod(got) > np.prod(wanted):
        return f"{hint}: not summed over a broadcast axis?"
    return f"{hint}: transposed?" if got == wanted[::-1] else hint


def _pattern_hints(position: int, analytic: np.ndarray, numeric: np.ndarray) -> list[str]:
    """What a wrong gradient looks like, where the pattern is a known one."""

    before = relative_errors(analytic, numeric).max()

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        """Whether a pattern explains most of the error."""
        return a.shape == b.shape and bool(relative_errors(a, b).max() < min(1e-4, before / 10))

    name = f"the gradient of input {position}"
    if not np.isfinite(analytic).all():
        return [f"{name} is not finite"]
    if not analytic.any():
        return [f"{name} is zero everywhere"]
    if same(-analytic, numeric):
        return [f"{name} has the wrong sign"]
    if analytic.ndim >= 2 and same(np.swapaxes(analytic, -1, -2), numeric):
        return [f"{name} is transposed"]
    large = np.abs(numeric) > FLOOR * np.abs(numeric).max()
    factor = float(np.median(analytic[large] / numeric[large])) if large.any() else 0.0
    if factor and same(analytic / factor, numeric):
        return [f"{name} is off by a constant factor of {factor:.6g}"]
    return []
