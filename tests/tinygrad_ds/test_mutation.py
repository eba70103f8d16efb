"""The tool that measures the gradient tests: what it changes, that it changes it back, and what it finds."""

import ast
import importlib
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.mutation import worker
from tests.mutation.__main__ import chosen, trial
from tests.mutation.cases import Hung, limited, try_case
from tests.mutation.equivalents import EQUIVALENT, reason
from tests.mutation.mutations import mutations
from tests.mutation.report import details, survivors, table
from tests.mutation.targets import Target, functions, mutants, targets
from tests.mutation.trial import Laboratory, Stale, code_of
from tests.mutation.worker import Outcome, Worker
from tinygrad_ds.kernels.table import TWINS

SOFTMAX = Target("tinygrad_ds/ops/activation.py", "softmax_backward", ("softmax",))


def changed(source):
    """(kind, after) of every mutation of a function."""
    return [(each.kind, each.after) for each in mutations(ast.parse(source).body[0])]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("return a + b", {("operator", "return a - b"), ("drop", "return a"), ("drop", "return b")}),
        ("return a * b", {("operator", "return a / b"), ("drop", "return a"), ("drop", "return b")}),
        ("return a @ b", {("operator", "return b @ a")}),
        ("return -a", {("sign", "return a")}),
        ("return x[2]", {("constant", "return x[3]"), ("constant", "return x[1]")}),
        ("return x[i]", {("index", "return x[0]")}),
        ("return x[i:j]", {("slice", "return x[:j]"), ("slice", "return x[i:]")}),
        ("return x.T", {("transposition", "return x")}),
        ("return a < b", {("comparison", "return a <= b"), ("comparison", "return a > b")}),
        ("return fit(g, a)", {("broadcast sum", "return g")}),
        ("return g.sum(axis=k)", {("broadcast sum", "return g"), ("axis", "return g.sum(axis=k + 1)")}),
        ("return g, h", {("no gradient", "return (None, h)"), ("no gradient", "return (g, None)")}),
        ("x += y", {("operator", "x -= y"), ("drop", "pass"), ("drop", "x = y")}),
        ("a, n = saved", {("saved", "a = 0 * a"), ("saved", "n = 0 * n")}),
        ("return f(keepdims=True)", {("constant", "return f(keepdims=False)")}),
    ],
)
def test_every_kind_of_slip_is_made(line, expected):
    assert expected <= set(changed(f"def f(saved, g):\n    {line}"))


def test_docstrings_and_parameters_are_left_alone():
    assert changed('def f(saved, g, axis=-1):\n    """2 + 2"""\n    return g') == []


def test_every_derivative_is_a_target():
    found = {(each.file, each.function) for each in targets("all")}
    for name, primitive in tg.primitives.items():
        if not primitive.forward.__module__.startswith("tinygrad_ds."):
            continue
        halves = ("backward_input", "backward_weight") if primitive.weights else ("backward",)
        file = f"{primitive.forward.__module__.replace('.', '/')}.py"
        assert {(file, f"{name}_{half}") for half in halves} <= found
        if name in TWINS["cpu"]:
            file = f"tinygrad_ds/kernels/cpu/{TWINS['cpu'][name]}.py"
            own = functions(file)  # a twin may take over the reference's derivative
            assert {(file, f"{name}_{half}") for half in halves if f"{name}_{half}" in own} <= found


def test_names_of_mutants_are_unique_within_a_function():
    for target in targets("all"):
        numbers = {(mutant.name, mutant.number) for mutant, _ in mutants(target)}
        assert len(numbers) == len(mutants(target))


def test_the_code_comes_back():
    laboratory, function = Laboratory(), tg.softmax.__dict__["backward"]
    before = function.__code__
    mutant = next(m for m, _ in mutants(SOFTMAX) if "y * (g + " in m.after)
    with laboratory.in_place(mutant):
        assert function.__code__ is not before
        assert not np.allclose(tg.softmax.backward(*softmax_call())[0].sum(), 0)
    assert function.__code__ is before
    assert np.allclose(tg.softmax.backward(*softmax_call())[0].sum(), 0)


def softmax_call():
    """What softmax saved, and a gradient."""
    _, saved = tg.softmax.forward(np.array([0.1, 0.5, -0.3]))
    return saved, np.array([1.0, 2.0, -1.0])


def test_the_walk_lets_the_right_code_pass_and_stops_the_wrong():
    laboratory = Laboratory()
    laboratory.walk("softmax", False)
    wrong = [m for m, _ in mutants(SOFTMAX) if m.kind in ("drop", "operator", "no gradient")]
    assert wrong
    for mutant in wrong:
        with laboratory.in_place(mutant), pytest.raises(Exception, match="gradient|Error|number"):
            laboratory.walk("softmax", False)
    for known in laboratory.cases("softmax", False):
        try_case(tg.softmax, known, False)


def test_a_loop_without_end_is_left():
    with pytest.raises(Hung), limited(0.05):
        while True:
            pass
    with limited(0.05):
        pass


def test_a_file_that_changed_meanwhile_is_noticed():
    mutant = mutants(SOFTMAX)[0][0]._replace(before="something else")
    with pytest.raises(Stale):
        code_of(mutant)


def test_equivalents_are_mutants_that_exist():
    names = {mutant.name for target in targets("all") for mutant, _ in mutants(target)}
    for listed, why in EQUIVALENT.items():
        assert len(why) > 10
        assert any(reason_for == listed for reason_for in names) or any(
            listed.endswith("*") and name.startswith(listed[:-1]) for name in names
        ), f"{listed} is no mutant any more"


def test_the_report_counts():
    one, two, three = (mutant for mutant, _ in mutants(SOFTMAX)[:3])
    outcomes = [
        Outcome(one, "killed", "softmax", 0.1),
        Outcome(two, "timeout", "more than 1 s", 1.0),
        Outcome(three, "survived", "", 0.1),
    ]
    assert [each.mutant for each in survivors(outcomes)] == [three] and reason(three.name) is None
    assert "66.7%" in table(outcomes).splitlines()[-1]
    assert f"+ {three.after}" in details(outcomes) and one.after not in details(outcomes)


def test_a_worker_that_hangs_is_replaced(monkeypatch):
    """A limit of nothing: a mutant is given up, and a new process tries the next."""
    asked = chosen("ops", ["ops/activation.py:relu_backward"], None, 0)
    assert len(asked) > 2
    outcomes = trial(asked[:2], 1, 0.0, say=False)
    assert {each.mutant for each in outcomes} == set(asked[:2])
    assert {each.verdict for each in outcomes} <= {"timeout", "killed"}


class Dying(Worker):
    """Says these things of a mutant, then its process is gone."""

    says: tuple = ()
    process = SimpleNamespace(pid=None, kill=lambda: None, join=lambda: None)

    def __init__(self, plain_kernels):
        self.plain_kernels = plain_kernels
        self.pipe, self.theirs = multiprocessing.Pipe()

    def give(self, mutant, cases_only):
        super().give(mutant, cases_only)
        for each in self.says:
            self.theirs.send(each)
        self.theirs.close()


@pytest.mark.parametrize(("says", "verdict"), [((), "untried"), ((("prepared", ""),), "killed")])
def test_a_worker_that_dies_before_the_mutant_is_in_place_has_not_tried_it(monkeypatch, says, verdict):
    monkeypatch.setattr(Dying, "says", says)
    monkeypatch.setattr(worker, "Worker", Dying)
    (outcome,) = worker.run([mutants(SOFTMAX)[0][0]], 1, 10.0)
    assert outcome.verdict == verdict and "the process crashed" in outcome.by


def test_kernels_are_tried_as_plain_python():
    asked = chosen("kernels", ["norm.py:_rmsnorm_backward"], 4, 0)
    outcomes = trial(asked, 1, 120.0, say=False)
    assert [each.verdict for each in outcomes] == ["killed"] * 4
    assert hasattr(importlib.import_module("tinygrad_ds.kernels.cpu.norm")._rmsnorm_backward, "function")


@pytest.mark.slow
def test_a_sample_of_all_mutants_is_killed():
    outcomes = trial(chosen("all", [], 100, 0), 1, 120.0, say=False)  # two would draw all cases twice
    assert len(outcomes) == 100
    assert survivors(outcomes) == [], details(outcomes)
