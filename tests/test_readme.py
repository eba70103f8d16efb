"""What README.md shows, works: its code runs, its links lead somewhere, its table names real functions."""

import re
from pathlib import Path

import numpy as np
import pytest

import tinygrad_ds as tg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| [^|]+\| \[[^]]+\]\((\S+)\) \| (`.+`) \| `(.+)` \|$", README, flags=re.MULTILINE)


def test_first_gradient_runs_and_agrees_with_itself(capsys):
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    assert len(code.strip().splitlines()) == 8
    names: dict = {}
    exec(code, names)
    by_hand = names["tg"].rmsnorm.backward(names["saved"], 2 * names["y"])
    np.testing.assert_allclose(names["x"].grad, by_hand[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(names["w"].grad, by_hand[1], rtol=1e-12)
    assert "passed" in capsys.readouterr().out


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_table_has_rows():
    assert len(ROWS) >= 8


@pytest.mark.parametrize(("path", "functions", "example"), ROWS, ids=[row[1] for row in ROWS])
def test_rows_name_a_gradient_in_its_file_and_an_example_that_runs(path, functions, example):
    for function in functions.split(", "):
        assert f"\ndef {function.strip('`')}(" in (ROOT / path).read_text()
    if example.startswith("python "):  # a lesson, which tests/examples runs
        assert (ROOT / example.removeprefix("python ")).is_file()
        return
    primitive = tg.primitives[re.match(r"tg\.(\w+)\(", example).group(1)]
    assert functions.startswith(f"`{primitive.name}_backward")
    result = eval(example, {"tg": tg, "np": np})
    values = result if isinstance(result, tuple) else (result,)
    assert all(np.isfinite(value.data).all() for value in values)
