"""Tries an answer on many cases and says what is wrong. Runs inside the grader's own process."""

import copy
import errno
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lab.cases import cotangent, small
from lab.exercises.diagnosis import Attempt, Finding, diagnose, right, same
from lab.exercises.making import Exercise
from lab.intermediates import shown
from tinygrad_ds.tape import arrays_in

CASES = 72


class Verdict(NamedTuple):
    """What came of an answer. `kind` is "right", a class of mistakes, or how the answer broke."""

    kind: str
    words: str
    passed: int = 0
    cases: int = 0
    smallest: str = ""  # the smallest case that fails, with what was given and what is true


class Trouble(Exception):
    """An answer that cannot be judged further: its class and a sentence."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind, self.words = kind, words


def examine(exercise: Exercise, forward: Callable, backward: Callable, seed: int = 0) -> Verdict:
    """Judge `backward` together with the `forward` that stands beside it."""
    wrong: list[Attempt] = []
    passed = tried = 0
    for number, (arrays, options) in enumerate(small(exercise.maker, CASES, seed)):
        y = exercise.value(arrays, options)
        g = cotangent(y, seed=number)
        try:
            attempt = attempted(exercise, forward, backward, arrays, options, y, g)
        except Trouble as trouble:
            case = case_text(exercise, arrays, options, g)
            return Verdict(trouble.kind, trouble.words, passed, tried + 1, case)
        tried += 1
        if right(attempt):
            passed += 1
        else:
            wrong.append(attempt)
    if not wrong:
        return Verdict("right", f"all {tried} cases are right", passed, tried)
    found = diagnose(exercise, wrong)
    return Verdict(
        found.kind, worded(found, passed, tried, wrong), passed, tried, answer_text(exercise, wrong[0])
    )


def attempted(
    exercise: Exercise,
    forward: Callable,
    backward: Callable,
    arrays: tuple[np.ndarray, ...],
    options: dict[str, Any],
    y: np.ndarray,
    g: np.ndarray,
) -> Attempt:
    """Run both functions on copies, and look that they leave what they were given alone."""
    given = [array.copy() for array in arrays]
    got, saved = pair_of(called("forward", forward, *given, **options))
    if not same(got, y):
        raise Trouble("forward", "forward no longer returns what it should: take it back from a new file")
    kept = copy.deepcopy(saved)
    arrived = g.copy()
    grads = called("backward", backward, saved, arrived)
    if not all(np.array_equal(a, b) for a, b in zip(given, arrays)):
        raise Trouble("damage", "an array that forward was given is changed: compute into new arrays")
    if not np.array_equal(arrived, g):
        raise Trouble("damage", "backward changes g, which other branches still need: work on a copy")
    pairs = zip(arrays_in(saved), arrays_in(kept), strict=True)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        raise Trouble("damage", "backward changes what forward saved: a second backward would go wrong")
    return Attempt(arrays, options, g, saved, grads, exercise.truth(arrays, options, g))


def called(name: str, function: Callable, *args: Any, **options: Any) -> Any:
    """The result, with any error as Trouble that names the line of the answer."""
    try:
        with np.errstate(all="ignore"):
            return function(*args, **options)
    except NotImplementedError:
        raise Trouble("empty", f"{name} is not written yet") from None
    except MemoryError:
        raise Trouble("memory", f"{name} asked for more memory than the grader allows") from None
    except RecursionError:
        raise Trouble("crash", f"{name} calls itself without end") from None
    except Exception as error:
        lines = [line for line in traceback.extract_tb(error.__traceback__) if line.filename == "exercise"]
        place = f" in line {lines[-1].lineno}" if lines else ""
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise Trouble(
                "crash", f"{name} prints or writes too much{place}, as in an endless loop"
            ) from None
        raise Trouble("crash", f"{name} raises {type(error).__name__}{place}: {error}") from None


def pair_of(result: Any) -> tuple[Any, Any]:
    """forward's result and what it saved."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise Trouble("forward", "forward must return a pair: y, and what backward needs")
    return result


def worded(found: Finding, passed: int, tried: int, wrong: list[Attempt]) -> str:
    """The finding, and what all wrong cases have in common and no right one needs to have."""
    words = found.words
    if passed:
        words += f"; {passed} of {tried} cases are right"
        keys = {key for attempt in wrong for key in attempt.options}
        for key in sorted(keys):
            values = {repr(attempt.options.get(key)) for attempt in wrong}
            if len(values) == 1 and len(wrong) > 3:
                words += f", and all wrong ones have {key} = {values.pop()}"
    return words


def case_text(exercise: Exercise, arrays: tuple[np.ndarray, ...], options: dict, g: np.ndarray) -> str:
    """A case as it could be typed."""
    lines = [f"{name} = {flat(array)}" for name, array in zip(argument_names(exercise, len(arrays)), arrays)]
    lines += [f"{key} = {value!r}" for key, value in options.items()]
    return "\n".join([*lines, f"g = {flat(g)}"])


def answer_text(exercise: Exercise, attempt: Attempt) -> str:
    """A case, what the answer gave, and what is true."""
    lines = [case_text(exercise, attempt.arrays, attempt.options, attempt.g)]
    given = attempt.given if isinstance(attempt.given, tuple | list) else ()
    for number, (name, t) in enumerate(zip(argument_names(exercise, len(attempt.truth)), attempt.truth)):
        u = given[number] if number < len(given) else "nothing"
        if t is None and u is None:
            continue
        mark = (
            "" if t is not None and u is not None and not isinstance(u, str) and same(u, t) else "   <- wrong"
        )
        lines.append(f"gradient of {name}: yours {flat(u)}{mark}")
        lines.append(f"{' ' * (len(name) + 13)} true {flat(t)}")
    return "\n".join(lines)


def flat(value: Any) -> str:
    """An array in one line."""
    if isinstance(value, np.ndarray):
        return " ".join(shown(value).split()) + (
            f"  {value.shape}" if value.ndim > 1 or not value.size else ""
        )
    return repr(value)


def argument_names(exercise: Exercise, count: int) -> list[str]:
    """What the forward calls its arrays."""
    names = exercise.forward.__code__.co_varnames[: exercise.forward.__code__.co_argcount]
    return list(names[:count]) if names else [f"arrays[{i}]" for i in range(count)]
