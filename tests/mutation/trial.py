"""Trying one mutant, inside a worker: its code is put in place, the checks run, the old code comes back.

First come the checks of the registry walk on cases drawn once, so that most mutants fall in milliseconds;
what is left meets the tests themselves in the end, run by pytest in this very process.
"""

import ast
import contextlib
import importlib
import io
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.mutation.cases import Hung, Killed, Known, covers, drawn, expected, try_case
from tests.mutation.targets import KERNELS, ROOT, Mutant, mutants
from tests.tinygrad_ds.harness import STRATEGIES, Case
from tests.tinygrad_ds.test_twins_at_size import sized
from tinygrad_ds.primitive import Primitive

REGISTRY = "tests/tinygrad_ds/test_registry.py"
AT_SIZE, TAKES_NONE = (
    "tests/tinygrad_ds/test_twins_at_size.py",
    "test_a_twin_takes_none_where_no_gradient_arrives",
)
WALK = (
    "gradient_equals_central_differences",
    "shapes_and_dtypes_are_kept",
    "layout_and_write_protection_do_not_matter",
    "gradients_have_the_dtype_of_their_own_arrays",
)
ELSEWHERE = {
    "accumulation": "tests/tinygrad_ds/test_accumulation.py",
    "divergence": "tests/posttrain/test_losses.py",
    "policy": "tests/posttrain/test_losses.py",
}
KERNEL_TESTS = {
    "attention": "test_attention_kernels.py",
    "experts": "test_moe_kernels.py",
    "fp8": "test_fp8.py",
    "fp8_experts": "test_fp8.py",
    "head": "test_head.py",
    "moe": "test_moe_kernels.py",
    "routing": "test_moe_kernels.py",
}
# Tests that kernels as plain Python cannot pass, and those on so many numbers that it would take minutes.
NOT_FOR_PLAIN = ("threads", "compil", "arithmetic", "one_unit", "import")
TOO_LONG_IN_PLAIN = ("unbiased", "three_products", "they_name", "quarter")


class Stale(Exception):
    """The file is not what it was when the mutants were listed."""


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
        """("killed" or "timeout", by what), ("alive", ""), or ("untried", why) where the right code fails."""
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
                    return "timeout" if isinstance(killed, Hung) else "killed", f"{name}: {killed}"
        return "alive", ""

    def prepare(self, mutant: Mutant, cases_only: bool) -> None:
        """Draw the cases, or find the tests that fail unchanged, before a mutant's time begins."""
        fused = mutant.target.file.startswith(KERNELS)
        names = covered_by(mutant)
        if cases_only:
            with contextlib.suppress(Exception):  # `by_cases` meets it again and says what it is
                for name in names:
                    self.cases(name, fused)
            return
        selection = self.selection(mutant, names, fused)
        if (key := tuple(selection)) not in self.failing:
            self.failing[key] = [f"--deselect={test}" for test in failures(selection, not fused)]

    def by_tests(self, mutant: Mutant) -> tuple[str, str]:
        """("killed", by which test) or ("survived", ""), of a mutant that was prepared for."""
        fused = mutant.target.file.startswith(KERNELS)
        selection = self.selection(mutant, covered_by(mutant), fused)
        with self.in_place(mutant):
            failed = failures(["-x", *self.failing[tuple(selection)], *selection], not fused)
        return ("killed", failed[0]) if failed else ("survived", "")

    @contextlib.contextmanager
    def in_place(self, mutant: Mutant):
        """The mutant's code in the place of the function's own."""
        module = importlib.import_module(mutant.target.file.removesuffix(".py").replace("/", "."))
        function = getattr(module, mutant.target.function)
        function = function.forward if isinstance(function, Primitive) else function
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
                    found += (made := expected(name, case, arrays))
                    if fused:
                        found += [known._replace(halved=True) for known in made]
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
            nodes += [f"{AT_SIZE}::{TAKES_NONE}[{name}]" for name in names]
            nodes += kernel_tests(Path(mutant.target.file).stem)
            skip = " or ".join((*NOT_FOR_PLAIN, *TOO_LONG_IN_PLAIN))
        else:
            nodes = [f"{REGISTRY}::test_{test}[{name}]" for name in names for test in WALK]
            stem = Path(mutant.target.file).stem
            nodes += [ELSEWHERE[stem]] if stem in ELSEWHERE else files_about(names)
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
