"""Trying one mutant, inside a worker: its code is put in place, the checks run, the old code comes back.

First come the checks of the registry walk on cases drawn once, so that most mutants fall in milliseconds;
what is left meets the tests themselves in the end, run by pytest in this very process.
"""

import ast
import contextlib
import importlib
import io
import pkgutil
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import tinygrad_ds as tg
from tests.mutation.targets import KERNELS, ROOT, Mutant, mutants
from tests.tinygrad_ds import strategies
from tests.tinygrad_ds.harness import STRATEGIES, Case
from tests.tinygrad_ds.test_twins_at_size import sized
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.gradient_check import relative_errors

for _module in pkgutil.iter_modules(strategies.__path__):
    importlib.import_module(f"{strategies.__name__}.{_module.name}")

CASES = 60
REGISTRY = "tests/tinygrad_ds/test_registry.py"
WALK = (
    "gradient_equals_central_differences",
    "shapes_and_dtypes_are_kept",
    "layout_and_write_protection_do_not_matter",
    "gradients_have_the_dtype_of_their_own_arrays",
)
KERNEL_TESTS = {
    "attention": "test_attention_kernels.py",
    "experts": "test_moe_kernels.py",
    "head": "test_head.py",
    "moe": "test_moe_kernels.py",
    "routing": "test_moe_kernels.py",
}


class Killed(Exception):
    """A check has seen that something is wrong."""


class Stale(Exception):
    """The file is not what it was when the mutants were listed."""


class Known(NamedTuple):
    """A case with the numbers that it gives unmutated, and the gradients that arrive at its results."""

    case: Case
    arrays: tuple[np.ndarray, ...]
    results: list
    sent: Any
    grads: list


def code_of(mutant: Mutant) -> CodeType:
    """The compiled body of a mutant."""
    found = mutants(mutant.target)
    if mutant.number >= len(found) or found[mutant.number][0] != mutant:
        raise Stale(f"{mutant.target.file} changed while mutants were tried: run them again")
    function = found[mutant.number][1].function()
    module = compile(ast.Module([function], []), str(ROOT / mutant.target.file), "exec")
    return next(c for c in module.co_consts if isinstance(c, CodeType) and c.co_name == function.name)


class Laboratory:
    """Everything that a worker keeps between mutants."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, bool], list[Known]] = {}
        self.failing: dict[tuple, list[str]] = {}  # tests that fail with the right code here, to be left out

    def by_cases(self, mutant: Mutant) -> tuple[str, str]:
        """("killed", by what), ("alive", ""), or ("untried", why) where the right code fails here."""
        fused = mutant.target.file.startswith(KERNELS)
        for name in (names := covered_by(mutant)):  # while the code is still right
            try:
                self.cases(name, fused)
            except Exception as error:
                return "untried", f"{name} does not run unchanged: {type(error).__name__}: {error}"
        with self.in_place(mutant):
            for name in names:
                try:
                    self.walk(name, fused)
                except Killed as killed:
                    return "killed", f"{name}: {killed}"
        return "alive", ""

    def by_tests(self, mutant: Mutant) -> tuple[str, str]:
        """("killed", by which test) or ("survived", "")."""
        fused = mutant.target.file.startswith(KERNELS)
        selection = self.selection(mutant, covered_by(mutant), fused)
        if (key := tuple(selection)) not in self.failing:
            self.failing[key] = [f"--deselect={test}" for test in failures(selection, not fused)]
        with self.in_place(mutant):
            failed = failures(["-x", *self.failing[key], *selection], not fused)
        return ("killed", failed[0]) if failed else ("survived", "")

    @contextlib.contextmanager
    def in_place(self, mutant: Mutant):
        """The mutant's code in the place of the function's own."""
        module = importlib.import_module(mutant.target.file.removesuffix(".py").replace("/", "."))
        function = getattr(module, mutant.target.function)
        kernel = None
        if not hasattr(function, "__code__"):
            kernel, function = function, function.function
        before = function.__code__
        try:
            function.__code__ = code_of(mutant)
            forget(kernel)
            yield
        finally:
            function.__code__ = before
            forget(kernel)

    def cases(self, name: str, fused: bool) -> list[Known]:
        """Cases of a primitive in both formats, and what they give; drawn once."""
        if (name, fused) not in self.known:
            found, cases = [], drawn(name)
            if fused:
                cases += [Case(*each) for each in sized(name)]
            for case in cases:
                for dtype in (np.float64, np.float32):
                    arrays = tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in case.arrays)
                    found += expected(name, case, arrays)
            found.sort(key=lambda known: -min(sum(a.size for a in known.arrays), 40))
            self.known[name, fused] = [each for each in found if not fused or covers(name, each)]
        return self.known[name, fused]

    def walk(self, name: str, fused: bool) -> None:
        """Run all cases. Raises Killed; the case that killed is tried first the next time."""
        pair = tg.primitives[name].fused["cpu"] if fused else tg.primitives[name]
        cases = self.cases(name, fused)
        for place, known in enumerate(cases):
            try:
                try_case(pair, known, fused)
            except Killed:
                cases.insert(0, cases.pop(place))
                raise

    def selection(self, mutant: Mutant, names: list[str], fused: bool) -> list[str]:
        """What pytest is to run for a mutant: the tests that cover these primitives."""
        if fused:
            nodes = [f"{REGISTRY}::test_twin_equals_reference[{name}-cpu]" for name in names]
            nodes += kernel_tests(Path(mutant.target.file).stem)
            skip = "threads or compil or arithmetic or one_unit or import"  # not for plain Python
        else:
            nodes = [f"{REGISTRY}::test_{test}[{name}]" for name in names for test in WALK]
            nodes += files_about(names)
            skip = "kernel or twin"
        return ["-k", f"not ({skip})", *nodes]


def covered_by(mutant: Mutant) -> list[str]:
    """The primitives whose cases try a mutant."""
    return [name for name in mutant.target.primitives if name in STRATEGIES]


class OnlyReference:
    """Leaves out the tests that are to run with the fused kernels, where the reference forms are mutated."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "fused" not in params_of(item).values()]


def params_of(item: pytest.Item) -> dict[str, Any]:
    """What a test was parametrised with."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def failures(arguments: list[str], reference: bool) -> list[str]:
    """Run tests in this process; the names of those that fail."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        options = ["-q", "--no-header", "-p", "no:cacheprovider"]
        code = pytest.main([*options, *arguments], plugins=[OnlyReference()] if reference else [])
    lines = [line for line in output.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))]
    named = [line.split(" ", 1)[1].split(" - ")[0] for line in lines]
    return named or ([] if code in (0, 5) else [f"pytest ended with {code}"])


def kernel_tests(stem: str) -> list[str]:
    """The files that test the kernels of one file."""
    found = [KERNEL_TESTS[stem]] if stem in KERNEL_TESTS else ["test_kernel_layouts.py", "test_kernels.py"]
    return [f"tests/tinygrad_ds/{name}" for name in found]


def forget(kernel: Any) -> None:
    """Let a kernel be made anew from its function."""
    if kernel is not None:
        kernel._serial.clear()
        kernel._parallel.clear()


def files_about(names: list[str]) -> list[str]:
    """Test files that call these primitives, the ones that do so most often first."""
    counted = []
    for path in (ROOT / "tests/tinygrad_ds").glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        calls = sum(
            text.count(f"tg.{name}(") + text.count(f"tg.{name}.") + text.count(f'"{name}"') for name in names
        )
        if calls and path.name not in ("test_registry.py", "test_kernels.py", "test_kernel_layouts.py"):
            counted.append((-calls, str(path.relative_to(ROOT))))
    return [file for _, file in sorted(counted)][:3]


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
    """Whether the twin serves a case, and rightly, as it is."""
    twin = tg.primitives[name].fused["cpu"]
    with np.errstate(all="ignore"):
        answer = twin.forward(*known.arrays, **known.case.options)
    if answer is NotImplemented:
        return False
    try_case(twin, known, True)
    return True


def try_case(pair: Any, known: Known, fused: bool) -> None:
    """One case with the code in place. Raises Killed where anything differs from what it should be."""
    arrays = tuple(array.copy() for array in known.arrays)
    try:
        with np.errstate(all="ignore"):
            result, saved = pair.forward(*arrays, **known.case.options)
            grads = pair.backward(saved, known.sent)
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
