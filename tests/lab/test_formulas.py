"""Docstrings' formulas: found, written in Unicode and drawn, in every docstring that there is."""

import inspect
import re

import pytest

import tinygrad_ds as tg
from lab.explanation import backward_functions
from lab.formulas import html_text, mathtext, pieces, readable, readable_text, svg

DOCSTRINGS = {
    function.__name__: inspect.getdoc(function)
    for primitive in tg.primitives.values()
    if primitive.forward.__module__.startswith("tinygrad_ds.")
    for function in [primitive.forward, *backward_functions(primitive)]
}


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_every_docstring_is_drawn_and_nothing_of_it_is_lost(name):
    for line in DOCSTRINGS[name].splitlines():
        assert "".join(piece.text for piece in pieces(line)) == line
    page = html_text(DOCSTRINGS[name])
    assert page.count("<svg") == sum(
        p.formula for line in DOCSTRINGS[name].splitlines() for p in pieces(line)
    )


def test_every_derivation_has_a_formula():
    prose = {"reshape", "squeeze", "expand_dims", "transpose", "concatenate", "stack", "split", "pad"}
    bare = {
        name
        for name, text in DOCSTRINGS.items()
        if "_backward" in name and not any(p.formula for line in text.splitlines() for p in pieces(line))
    }
    allowed = {f"{name}_backward" for name in prose}
    copies = {"maximum_backward", "minimum_backward", "where_backward", "astype_backward"}
    copies |= {"broadcast_to_backward", "take_along_axis_backward"}
    assert bare - allowed - copies == set()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("dL/dx_j = r (h_j - x_hat_j)", "∂L/∂xⱼ = r (hⱼ - x̂ⱼ)"),
        ("y_i = e^x_i / sum_j e^x_j", "yᵢ = e^xᵢ / Σⱼ e^xⱼ"),
        ("a^(b-1)", "aᵇ⁻¹"),
        ("A^T G", "Aᵀ G"),
        ("sigma (1 - sigma)", "σ (1 - σ)"),
        ("n <= 2", "n ≤ 2"),
        ("x^2 * y", "x² · y"),
    ],
)
def test_formulas_are_written_in_unicode(text, written):
    assert readable(text) == written


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("dL/dx_j", r"\dfrac{\partial L}{\partial x_{j}}"),
        ("e^-x", "e^{-x}"),
        ("x_hat_i", r"\hat{x}_{i}"),
        ("P_ij^(1/2)", "P_{ij}^{1/2}"),
        ("softmax(x)", r"\mathrm{softmax}(x)"),
    ],
)
def test_formulas_in_mathtext(text, drawn):
    assert mathtext(text) == drawn


def test_prose_and_code_are_left_alone():
    for line in ("x (batch, time, d), kv_heads of them", "as numpy.split does", "`axis` and `keepdims`"):
        assert [piece.formula for piece in pieces(line)] == [False]
        assert readable_text(line) == line


def test_a_drawing_needs_no_font_and_says_what_it_shows():
    drawing = svg("dy/dx = 1 - y^2")
    assert 'aria-label="∂y/∂x = 1 - y²"' in drawing and "<text" not in drawing and "href" not in drawing
    numbers = [float(n) for n in re.search(r'viewBox="([^"]+)"', drawing)[1].split()]
    assert numbers[2] > numbers[3] > 0
