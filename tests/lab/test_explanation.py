"""Explanations, lists, checks and comparisons: whole, self-contained, and true."""

import re

import numpy as np
import pytest

import lab
import tinygrad_ds as tg
from lab.cases import MAKERS, worked
from lab.checking import STEPS, largest_error
from lab.figures import text_curve
from lab.usage import used_by
from tinygrad_ds.primitive import Primitive
from train.errors import UserError


def test_an_explanation_has_all_its_parts():
    text = repr(lab.explain("rmsnorm"))
    for part in (
        "∂L/∂xⱼ   = hⱼ r + Σᵢ hᵢ xᵢ ∂r/∂xⱼ",
        "def rmsnorm_backward(saved, g):",
        "line by line",
        "x_hat * (h * x_hat).mean(axis=-1, keepdims=True)",
        "gradient check passed",
        "layers/norm.py:",
    ):
        assert part in text


def test_a_wide_terminal_shows_both_sources_side_by_side(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert re.search(r"def softmax\(.*│ def softmax_backward\(saved, g\):", repr(lab.explain("softmax")))


def test_halves_of_a_derivative_are_explained_both():
    told = lab.explain("linear")
    assert [function.name for function in told.backwards] == [
        "linear_backward_input",
        "linear_backward_weight",
    ]
    assert set(told.lines) == {"linear", "linear_backward_input", "linear_backward_weight"}


def test_a_page_needs_nothing_from_outside():
    page = lab.explain("softmax").page()
    assert page.startswith("<!doctype html>") and "viewport" in page
    assert not re.search(r'(?:src|href)="(?!#)', page) and "@import" not in page and "url(" not in page
    assert page.count('class="formula"') > 5


def test_uses_are_found_by_name_and_by_watching():
    assert any(use.file == "layers/mla.py" for use in used_by("split"))
    assert any("x + y" in use.source for use in used_by("add"))
    assert used_by("cumsum") == []


def test_unknown_names_suggest_the_nearest():
    for call in (lab.explain, lab.check, lab.compare):
        with pytest.raises(UserError, match="did you mean softmax"):
            call("sofmax")


def test_errors_fall_with_the_step_then_rise():
    """Truncation is of order 2 and 4; rounding rises as 1/h."""
    (curve,) = lab.check("tanh").curves
    assert curve.passed and curve.max_error < 1e-9
    second, fourth = curve.second_order, curve.fourth_order
    at = {round(np.log10(step)): place for place, step in enumerate(STEPS)}
    assert 1.7 < np.log10(second[at[-1]] / second[at[-2]]) < 2.3
    assert 3.5 < np.log10(fourth[at[-1]] / fourth[at[-2]]) < 4.5
    assert second[at[-12]] > 1e3 * second.min() and fourth.min() < second.min()


def test_a_wrong_gradient_is_a_level_line():
    wrong = Primitive.__new__(Primitive)
    wrong.__dict__.update(tg.primitives["tanh"].__dict__)
    wrong.__dict__["backward"] = lambda saved, g: (1.01 * g * (1 - saved.y**2),)
    errors = [largest_error(wrong, worked(MAKERS["tanh"]), step, (8, 1)) for step in (1e-4, 1e-3, 1e-2)]
    assert np.allclose(errors, 0.01 / 1.01, rtol=1e-3)


def test_checks_are_remembered_in_the_list():
    before = {entry.name: entry.checked for entry in lab.list().entries}
    assert set(before.values()) == {None} and set(before) == set(tg.primitives)
    checks = lab.check("exp", "linear")
    after = {entry.name: entry.checked for entry in lab.list().entries}
    assert {name for name, error in after.items() if error is not None} == {"exp", "linear"}
    assert [after[curve.name] for curve in checks.curves] == [curve.max_error for curve in checks.curves]


def test_damaged_memory_counts_as_none(tmp_path):
    lab.check("exp")
    (tmp_path / "state" / "checks.json").write_text("{")
    assert all(entry.checked is None for entry in lab.list().entries)


def test_the_list_says_what_is_saved():
    entries = {entry.name: entry for entry in lab.list().entries}
    assert entries["exp"].saved_bytes == 4 * 128 * 256 * 4 and entries["add"].saved_bytes == 0
    assert "cpu" in entries["softmax"].twins.split() and entries["exp"].family == "elementwise"
    listed = lab.list()
    assert "exp" in repr(listed) and "exp" in listed._repr_html_() and 'href="#exp"' not in listed.body()
    assert 'href="#exp"' in listed.body(linked=True)
    assert {entry.name: entry.what for entry in listed.entries}["cumsum"] == "yᵢ = x₀ + .. + xᵢ along axis"


def test_a_curve_in_characters_has_a_row_for_each_decade():
    text = text_curve(np.array([1e-2, 1e-1]), {"a": np.array([1e-9, 3e-5]), "b": np.array([1e-3, 1e-3])})
    rows = text.splitlines()[:7]
    assert [row[:5] for row in rows] == [f"1e-{n:02d}" for n in range(3, 10)]
    assert rows[0].count("x") == 2 and "o" in rows[2] and "o" in rows[6]


def test_a_twin_is_compared_in_error_speed_and_memory():
    both = lab.compare("rmsnorm")
    assert set(both.errors) == {"output", "gradient 0", "gradient 1"}
    assert both.errors["output"].size == 4 * 128 * 256
    assert all(values.max() < 1e-3 for values in both.errors.values())
    assert both.reference.forward > 0 and both.fused.saved_bytes > 0
    assert "gain" in repr(both) and "<svg" in both._repr_html_()


def test_what_has_no_twin_cannot_be_compared():
    with pytest.raises(UserError, match="exp has no fused twin.*softmax"):
        lab.compare("exp")
