"""What is wrong with a gradient: patterns that a wrong answer leaves, looked for one by one.

Small cases match too many patterns (a single number that is wrong is off by a factor, whatever happened), so
every wrong case votes for all that it matches, and the pattern that explains the most of them wins; among
equals the one that says more.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lab.exercises.making import Exercise
from tinygrad_ds.gradient_check import relative_errors
from tinygrad_ds.ops.broadcast import sum_to

TOLERANCE = 1e-7
VOTERS = 12  # the largest wrong cases
# What to believe where several patterns explain the same cases, the most telling first.
RANK = (
    *("count", "none", "shape", "broadcast", "transposed", "swapped", "nan", "zero", "sign", "jacobian"),
    *("scale", "repeats", "mask", "term", "axis", "factor", "missing factor", "partly"),
)


class Finding(NamedTuple):
    """A class of mistakes, and the sentence for it."""

    kind: str
    words: str


class Attempt(NamedTuple):
    """One case, what arrived, what the answer gave and what is true."""

    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any]
    g: np.ndarray
    saved: Any
    given: Any
    truth: tuple


def same(a: Any, b: Any) -> bool:
    """Equal in shape, and in every entry but for rounding."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype.kind not in "fiub" or not np.isfinite(a).all():
        return False
    a = a.astype(np.float64)
    largest = np.abs(b).max(initial=0.0)
    return bool((np.abs(a - b) <= TOLERANCE * max(largest, 1e-3)).all())


def right(attempt: Attempt) -> bool:
    """Whether an answer is right in every gradient."""
    given, truth = attempt.given, attempt.truth
    if not isinstance(given, tuple | list) or len(given) != len(truth):
        return False
    return all(u is None if t is None else u is not None and same(u, t) for u, t in zip(given, truth))


def diagnose(exercise: Exercise, wrong: list[Attempt]) -> Finding:
    """The pattern that explains the most of the wrong attempts."""
    voters = sorted(wrong, key=lambda attempt: -sum_of_sizes(attempt))[:VOTERS]
    votes: Counter[Finding] = Counter()
    for attempt in voters:
        votes.update(set(findings(exercise, attempt)))
    if not votes:
        return Finding("unknown", "no known mistake looks like this")
    return min(votes, key=lambda finding: (-votes[finding], RANK.index(finding.kind), finding.words))


def sum_of_sizes(attempt: Attempt) -> int:
    """How many entries a case has."""
    return sum(array.size for array in attempt.arrays)


def findings(exercise: Exercise, attempt: Attempt) -> Iterator[Finding]:
    """All patterns that one wrong attempt shows."""
    given, truth = attempt.given, attempt.truth
    if not isinstance(given, tuple | list):
        yield Finding(
            "count", f"backward returned {type(given).__name__}: return a tuple, one entry per array"
        )
        return
    if len(given) != len(truth):
        wanted = f"{len(truth)} array{'s' if len(truth) > 1 else ''}"
        yield Finding("count", f"backward returned {len(given)} gradients but forward took {wanted}")
        return
    names = [f"gradient {i}" if len(truth) > 1 else "the gradient" for i in range(len(truth))]
    for name, u, t in zip(names, given, truth):
        if t is None:
            if u is not None:
                yield Finding("none", f"{name} belongs to whole numbers or constants: return None for it")
        elif u is None:
            yield Finding("none", f"{name} is None, but the loss depends on that array")
        elif not same(u, t):
            yield from about_one(name, np.asarray(u), t, attempt)
    if all((u is None) == (t is None) for u, t in zip(given, truth)):
        yield from about_all(exercise, attempt)


def about_all(exercise: Exercise, attempt: Attempt) -> Iterator[Finding]:
    """Patterns of the gradients together: exchanged ones, known slips, another axis."""
    given, truth = attempt.given, attempt.truth
    wrong = [i for i, t in enumerate(truth) if t is not None and not same(given[i], t)]
    for i, j in itertools.combinations(range(len(truth)), 2):
        if truth[i] is not None and truth[j] is not None and {i, j} & set(wrong):
            if same(given[i], truth[j]) and same(given[j], truth[i]) and not same(truth[i], truth[j]):
                yield Finding("swapped", f"gradients {i} and {j} are exchanged")
    for slip in exercise.slips:
        slipped = slip.gradients(attempt.g, *attempt.arrays, **attempt.options)
        if any(slipped[i] is not None and not same(slipped[i], truth[i]) for i in wrong) and all(
            same(given[i], slipped[i]) for i in wrong
        ):
            yield Finding(slip.kind, slip.words)
    axis = attempt.options.get("axis")
    if isinstance(axis, int) and exercise.name not in ("concatenate",):
        yield from other_axes(exercise, attempt, axis)


def other_axes(exercise: Exercise, attempt: Attempt, axis: int) -> Iterator[Finding]:
    """Is this the right gradient of another axis?"""
    x = attempt.arrays[0]
    for other in range(-x.ndim, 0):
        if other == axis - x.ndim * (axis >= 0):
            continue
        options = {**attempt.options, "axis": other}
        if np.shape(exercise.value(attempt.arrays, options)) != attempt.g.shape:
            continue
        if same(attempt.given[0], exercise.truth(attempt.arrays, options, attempt.g)[0]):
            yield Finding("axis", "this is right for another axis: use the axis that forward was given")


def about_one(name: str, u: np.ndarray, t: np.ndarray, attempt: Attempt) -> Iterator[Finding]:
    """Patterns of one wrong gradient."""
    if u.dtype.kind not in "fiub":
        yield Finding("shape", f"{name} is an array of {u.dtype}, not of real numbers")
        return
    if u.shape != t.shape:
        yield from about_shape(name, u, t)
        return
    if not np.isfinite(u).all():
        yield Finding("nan", f"{name} holds NaN or infinity where the true one is finite")
        return
    u = u.astype(np.float64)
    if not u.any():
        yield Finding("zero", f"{name} is zero everywhere")
        return
    if same(-u, t):
        yield Finding("sign", f"{name} has the wrong sign")
    if u.ndim >= 2 and u.shape[-1] == u.shape[-2] > 1 and same(u.swapaxes(-1, -2), t):
        yield Finding("transposed", f"{name} is transposed")
    yield from about_factors(name, u, t, attempt)
    wrong = relative_errors(u, t) > TOLERANCE
    if wrong.any() and not wrong.all():
        yield Finding("partly", f"{name} is right in some entries and wrong in others")


def about_shape(name: str, u: np.ndarray, t: np.ndarray) -> Iterator[Finding]:
    """A gradient whose shape is not that of its array."""
    told = f"{name} does not have the shape of its array"
    if u.ndim >= t.ndim and u.size > t.size:
        try:
            summed = sum_to(u, t.shape)
        except (ValueError, IndexError):
            summed = None
        if summed is not None:
            if same(summed, t) or u.ndim > t.ndim or all(a == b or b == 1 for a, b in zip(u.shape, t.shape)):
                yield Finding("broadcast", f"{name} is not summed over the axes that were broadcast")
                return
    if u.ndim >= 2 and same(np.swapaxes(u, -1, -2), t):
        yield Finding("transposed", f"{name} is transposed")
    elif grouped_sum(u, t):
        yield Finding("broadcast", f"{name} is not summed over a group that shares its array")
    elif u.size == t.size and same(u.reshape(t.shape), t):
        yield Finding("shape", f"{told}, though its numbers are right: reshape it")
    elif u.size < t.size and reaches(u, t):
        yield Finding("shape", f"{told}: repeat it over the axes that forward took away")
    else:
        yield Finding("shape", told)


def grouped_sum(u: np.ndarray, t: np.ndarray) -> bool:
    """Whether one axis of u is longer by a whole factor, and its neighbours must be added up to give t."""
    differing = [axis for axis in range(t.ndim) if u.ndim == t.ndim and u.shape[axis] != t.shape[axis]]
    if len(differing) != 1 or not t.size or u.shape[differing[0]] % t.shape[differing[0]]:
        return False
    axis = differing[0]
    split = u.reshape(*t.shape[: axis + 1], -1, *t.shape[axis + 1 :])
    return same(split.sum(axis=axis + 1), t)


def reaches(u: np.ndarray, t: np.ndarray) -> bool:
    """Whether u broadcasts to t."""
    try:
        return same(np.broadcast_to(u, t.shape), t)
    except ValueError:
        return False


def about_factors(name: str, u: np.ndarray, t: np.ndarray, attempt: Attempt) -> Iterator[Finding]:
    """A constant factor, one that the case knows, or an array that was forgotten."""
    large = np.abs(t) > 1e-3 * np.abs(t).max()
    if large.any():
        ratio = float(np.median(u[large] / t[large]))
        if ratio and same(u / ratio, t):
            for kind, words in named_factors(ratio, attempt):
                yield Finding(kind, f"{name} {words}")
    for label, array in named_arrays(attempt):
        if array.ndim <= u.ndim and not np.all(array == 1) and array.size > 1:
            try:
                if same(u * array, t):
                    yield Finding("missing factor", f"{name} lacks the factor {label}")
                elif (array != 0).all() and same(u / array, t):
                    yield Finding("missing factor", f"{name} has the factor {label} once too often")
            except ValueError:  # shapes that do not broadcast
                continue


def named_factors(ratio: float, attempt: Attempt) -> Iterator[tuple[str, str]]:
    """What a wrong constant factor may be: a scale of the call, the size of an axis, or a number."""
    for label, value in scales(attempt):
        for power, said in ((1, "is too large by the factor"), (-1, "lacks the factor")):
            if value not in (0, 1) and np.isclose(ratio, value**power, rtol=1e-6):
                yield "scale", f"{said} {label}, which the call has"
    sizes = {a.shape[i - a.ndim]: i - a.ndim for a in attempt.arrays for i in range(a.ndim)}
    counts = {size: f"the size of axis {place}" for size, place in sizes.items()}
    counts |= {a.size: f"the number of entries of array {i}" for i, a in enumerate(attempt.arrays)}
    for size, label in counts.items():
        if size > 1:
            if np.isclose(ratio, size):
                yield "factor", f"is too large by a factor: {label}"
            if np.isclose(ratio, 1 / size):
                yield "factor", f"is too small by a factor: {label}"
    yield "factor", f"is off by the constant factor {ratio:.6g}"


def scales(attempt: Attempt) -> Iterator[tuple[str, float]]:
    """Numbers that the call was given or that forward saved."""
    for key, value in attempt.options.items():
        if isinstance(value, float):
            yield key, value
    saved = attempt.saved if isinstance(attempt.saved, tuple | list) else (attempt.saved,)
    for value in saved:
        if isinstance(value, float | np.floating):
            yield "that was saved", float(value)


def named_arrays(attempt: Attempt) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that a product may lack: what arrived, what came in, what was saved."""
    yield "g, what arrived", np.asarray(attempt.g)
    for i, array in enumerate(attempt.arrays):
        if array.dtype.kind == "f":
            yield f"of array {i}", array
    saved = attempt.saved if isinstance(attempt.saved, tuple | list) else (attempt.saved,)
    for i, value in enumerate(saved):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield f"of saved item {i}", value
