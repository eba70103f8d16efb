"""Cases that try a mutant: drawn once from the walk's own strategies, with the right numbers for them."""

import contextlib
import importlib
import pkgutil
import signal
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

import tinygrad_ds as tg
from tests.tinygrad_ds import strategies
from tests.tinygrad_ds.harness import STRATEGIES, Case
from tests.tinygrad_ds.test_twins_at_size import both_halves
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.gradient_check import relative_errors

for _module in pkgutil.iter_modules(strategies.__path__):
    importlib.import_module(f"{strategies.__name__}.{_module.name}")

CASES = 60
CASE_SECONDS = 2.0  # of the processor; a case takes a thousandth of it


class Killed(Exception):
    """A check has seen that something is wrong."""


class Hung(Killed):
    """A case has used its time of the processor."""


class Known(NamedTuple):
    """A case with the numbers that it gives unmutated, and the gradients that arrive at its results."""

    case: Case
    arrays: tuple[np.ndarray, ...]
    results: list
    sent: Any
    grads: list
    halved: bool = False  # whether the arrays are handed over as halves of wider ones


def drawn(name: str) -> list[Case]:
    """Cases from the walk's own strategy, the same each time."""
    found: list[Case] = []

    @settings(
        max_examples=CASES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=STRATEGIES[name])
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


def outputs_of(result: Any) -> tuple:
    """The results as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def arriving(result: Any) -> Any:
    """A gradient for each floating result."""
    random = np.random.default_rng(1)
    parts = tuple(
        random.normal(size=np.shape(y)).astype(np.asarray(y).dtype)
        if is_floating(np.asarray(y).dtype)
        else None
        for y in outputs_of(result)
    )
    return parts if isinstance(result, tuple) else parts[0]


def expected(name: str, case: Case, arrays: tuple) -> list[Known]:
    """What a case gives with the code as it is; nothing where it cannot be computed in this format."""
    primitive: Any = tg.primitives[name]
    with np.errstate(all="ignore"):
        result, saved = primitive.forward(*arrays, **case.options)
        sent = arriving(result)
        grads = [None if g is None else np.array(g) for g in primitive.backward(saved, sent)]
    results = [np.array(y) for y in outputs_of(result)]
    return [Known(case, arrays, results, sent, grads)]


def covers(name: str, known: Known) -> bool:
    """Whether the twin serves a case, and rightly, as it is; and as plain Python in a moment."""
    twin = tg.primitives[name].fused["cpu"]
    with np.errstate(all="ignore"):
        answer = twin.forward(*known.arrays, **known.case.options)
    if answer is NotImplemented:
        return False
    try:
        try_case(twin, known, True, CASE_SECONDS / 4)
    except Hung:
        return False
    return True


def alike(a: Any, b: Any) -> bool:
    """Whether the whole derivative and its halves gave the same."""
    if a is None or b is None:
        return a is b
    return twin_close(np.asarray(a), np.asarray(b))


def half_of_a_wider(array: np.ndarray) -> np.ndarray:
    """The same numbers, with as many others behind each row in memory."""
    if array.ndim < 2 or not array.size:
        return array.copy()
    return np.concatenate([array, array], axis=-1)[..., : array.shape[-1]]


@contextlib.contextmanager
def limited(seconds: float):
    """Raises Hung in what uses more of the processor than that."""

    def hung(*_: Any) -> None:
        raise Hung(f"more than {seconds:g} s for one case")

    before = signal.signal(signal.SIGPROF, hung)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def try_case(pair: Any, known: Known, fused: bool, seconds: float = CASE_SECONDS) -> None:
    """One case with the code in place. Raises Killed where anything differs from what it should be."""
    arrays = tuple(half_of_a_wider(array) if known.halved else array.copy() for array in known.arrays)
    try:
        with np.errstate(all="ignore"), limited(seconds):
            result, saved = pair.forward(*arrays, **known.case.options)
            grads = pair.backward(saved, known.sent)
            if getattr(pair, "weights", ()):
                halves = both_halves(pair, saved, known.sent)
                grads = tuple(a if alike(a, b) else None for a, b in zip(grads, halves))
    except Hung:
        raise
    except Exception as error:
        raise Killed(f"{type(error).__name__}: {error}") from None
    for array, before in zip(arrays, known.arrays):
        if not np.array_equal(array, before, equal_nan=True):
            raise Killed("an input was changed")
    if not isinstance(grads, tuple) or len(grads) != len(known.grads):
        raise Killed("another number of gradients")
    same = twin_close if fused else reference_close
    for what, given_arrays, expected_arrays in (
        ("result", outputs_of(result), known.results),
        ("gradient", grads, known.grads),
    ):
        for place, (a, b) in enumerate(zip(given_arrays, expected_arrays)):
            if (a is None) != (b is None):
                raise Killed(f"{what} {place} is {'None' if a is None else 'not None'}")
            if a is not None:
                a = np.asarray(a)
                if a.shape != b.shape or a.dtype != b.dtype:
                    raise Killed(f"{what} {place} is {a.dtype}{a.shape}, not {b.dtype}{b.shape}")
                if not same(a, b):
                    raise Killed(f"{what} {place} differs on {[x.shape for x in known.arrays]}")


def reference_close(a: np.ndarray, b: np.ndarray) -> bool:
    """What the numeric check would let pass; in float32, which it does not judge, the form alone counts."""
    if a.dtype.kind != "f" or a.dtype == np.float32:
        return bool(a.dtype == np.float32 or np.array_equal(a, b))
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        return False
    return bool(relative_errors(a[finite], b[finite]).max(initial=0.0) <= 1e-6)


def twin_close(a: np.ndarray, b: np.ndarray) -> bool:
    """The walk's tolerance for twins: 1e-12 in float64, 2e-5 in float32, of the largest entry."""
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        return False
    tolerance = 1e-12 if a.dtype == np.float64 else 2e-5
    largest = max(np.abs(b[finite]).max(initial=0.0), 1e-30)
    return bool(np.abs(a[finite] - b[finite]).max(initial=0.0) <= tolerance * largest)
