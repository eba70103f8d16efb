"""Every lesson runs from the first cell to the last, alone, and leaves its figure."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
OURS = {"tinygrad_ds", "layers", "train", "posttrain", "lab"}
BESIDE = {"numpy", "matplotlib", "pathlib", "time", "dataclasses", "fractions", "json", "tempfile"}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs_and_leaves_its_figure(lesson, tmp_path):
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")  # workers share the cores
    environment = os.environ | {"MPLBACKEND": "Agg"} | dict.fromkeys(pools, "1")
    done = subprocess.run(
        [sys.executable, lesson], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figure = tmp_path / "runs" / "examples" / f"{lesson.stem}.svg"
    assert "<svg" in figure.read_text()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson_has_the_form_of_a_lesson(lesson):
    """Cells, an equation with its file, imports from the packages only, two things to try at the end."""
    text = lesson.read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    file = re.search(r"File: (\S+\.py)", text)
    assert file and (ROOT / file[1]).is_file()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported <= OURS | BESIDE
    last = text.rstrip().split("# %%")[-1]
    assert "Two things to try" in last and "# 1. " in last and "# 2. " in last


def test_lessons_are_numbered_without_gaps_and_have_a_page():
    assert [int(lesson.name[:2]) for lesson in LESSONS] == list(range(1, len(LESSONS) + 1))
    pages = {page.stem for page in (ROOT / "docs" / "lessons").glob("*.md")}
    assert {lesson.stem for lesson in LESSONS} <= pages
