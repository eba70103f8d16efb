"""The ladder and its grader: right answers pass, wrong ones are caught and, if of a known kind, diagnosed."""

import numpy as np
import pytest

import lab
from lab.cases import cotangent, small
from lab.exercises import LADDER
from lab.exercises.diagnosis import RANK
from lab.exercises.examine import case_text, examine
from lab.exercises.grading import exercise_text
from tests.lab import answers
from tests.lab.catalogue.__main__ import changed, said_of, slips
from tests.lab.catalogue.making import CATALOGUE


def test_the_ladder_leads_from_add_to_mla_and_mtp():
    assert len(LADDER) >= 24
    assert list(LADDER)[0] == "add"
    assert {"absorbed_attention", "combine", "cross_entropy", "shared_head"} <= set(LADDER)


def test_prerequisites_stand_before():
    seen: set[str] = set()
    for name, each in LADDER.items():
        assert set(each.after) <= seen
        seen.add(name)


@pytest.mark.parametrize("name", LADDER)
def test_the_forward_of_a_file_is_the_function_that_is_judged(name):
    each = LADDER[name]
    scope: dict = {}
    exec(exercise_text(each, "file.py"), scope)
    assert scope["EXERCISE"] == name
    for arrays, options in small(each.maker, 20, seed=3):
        y, _ = scope["forward"](*arrays, **options)
        np.testing.assert_allclose(y, each.value(arrays, options), rtol=1e-12, atol=1e-13)
    with pytest.raises(NotImplementedError):
        scope["backward"](None, None)


@pytest.mark.parametrize("name", LADDER)
def test_right_answers_pass(name):
    verdict = examine(LADDER[name], LADDER[name].forward, getattr(answers, name), seed=5)
    assert verdict.kind == "right", verdict
    assert verdict.passed == verdict.cases == 72


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: f"{entry.exercise}-{entry.backward.__name__}")
def test_wrong_answers_are_caught_and_known_ones_diagnosed(entry):
    each = LADDER[entry.exercise]
    verdict = examine(each, each.forward, entry.backward)
    assert verdict.kind != "right"
    if entry.kinds:
        assert verdict.kind in entry.kinds, verdict
    assert verdict.words and verdict.smallest


def test_the_catalogue_is_large_and_has_every_known_kind():
    assert len(CATALOGUE) >= 60
    kinds = {kind for entry in CATALOGUE for kind in entry.kinds}
    needed = {
        "broadcast",
        "transposed",
        "jacobian",
        "scale",
        "axis",
        "sign",
        "factor",
        "shape",
        "nan",
        "damage",
    }
    assert needed <= kinds
    assert kinds <= {*RANK, "damage", "crash", "memory", "unknown"}


def test_the_smallest_failing_case_is_shown():
    """Without the sum over copies, the first case with a copy fails, and no smaller one."""
    each = LADDER["add"]
    verdict = examine(each, each.forward, lambda saved, g: (g, g))
    cases = [(number, case.arrays) for number, case in enumerate(small(each.maker, 72))]
    number, arrays = next((n, (a, b)) for n, (a, b) in cases if a.shape != b.shape)
    g = cotangent(arrays[0] + arrays[1], seed=number)
    assert verdict.smallest.startswith(case_text(each, arrays, {}, g))
    assert verdict.smallest.count("<- wrong") == 1


def test_a_changed_forward_is_noticed_but_other_savings_are_welcome():
    each = LADDER["exp"]
    wrong = examine(each, lambda x: (x, x), answers.exp)
    assert wrong.kind == "forward"
    other = examine(each, lambda x: (np.exp(x), {"x": x}), lambda saved, g: (g * np.exp(saved["x"]),))
    assert other.kind == "right"


def test_progress_is_kept_and_shown():
    assert lab.ladder().done == {}
    assert "next: add, exp, relu" in lab.ladder().sentence()
    path = lab.exercise("exp").path
    path.write_text(path.read_text().replace('raise NotImplementedError("write me")', "return (g * saved,)"))
    grade = lab.grade(path)
    assert grade.passed and "right in all" in repr(grade) and "tanh" in repr(grade)
    assert set(lab.ladder().done) == {"exp"}


# Changes of right answers that are right too: x = 0 is a kink, where no case lies; any negative size is the
# open one; and axes counted from the other end.
RIGHT_TOO = {
    "relu": ["x >= 0"],
    "linear": ["rows = g.reshape(-2,", "x.reshape(-2,"],
    "attention": ["values.swapaxes(-1, 2)", "ds.swapaxes(-1, 2)", "p.swapaxes(-1, 2)"],
    "clipped_objective": ["a >= 0", "rho >= high", "rho <= low"],
    "jensen_shannon": ["(q * a).sum(axis=1,"],
    "router_weights": ["(g * t / total).sum(axis=1,", "grad_t, axis=1)"],
}


def test_slips_are_made_in_every_answer():
    made = list(slips())
    assert {slip.exercise for slip in made} == set(LADDER) and len(made) > 600
    slip = next(each for each in made if each.name.endswith("->  return (g / y,)") and each.exercise == "exp")
    assert changed(slip)(2.0, 3.0) == (1.5,) and said_of("exp", changed(slip)) != "right"


@pytest.mark.slow
def test_every_slip_in_a_right_answer_is_caught():
    missed = [slip for slip in slips() if said_of(slip.exercise, changed(slip)) == "right"]
    for slip in missed:
        after = slip.mutation.after
        assert any(part in after for part in RIGHT_TOO.get(slip.exercise, [])), slip.name
    assert len(missed) == sum(map(len, RIGHT_TOO.values()))
