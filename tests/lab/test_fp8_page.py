"""What FP8 does to numbers: the figures of the page are those of the arrays, computed another way."""

import numpy as np
import pytest

import lab
from lab.fp8_page import SCALINGS, Watch, lost, rounded
from lab.tracing import SMALL
from layers import DeepSeekModel
from layers.precision import Fp8, precision
from tests.lab.test_main import run  # noqa: F401
from tinygrad_ds import observe


@pytest.fixture(scope="module")
def found():
    return lab.fp8()


def test_shares_and_errors_are_those_of_the_entries():
    x = np.full((2, 256), 448.0, np.float32)
    x[0, 1], x[0, 2], x[1, 130] = 2.0**-11, 17.0, 0.0  # below the grid; half way between 16 and 18; nothing
    one = rounded(x, tile=(1, 128))
    assert one.underflow == 1 / 512 and one.saturated == 509 / 512
    assert np.array_equal(one.scales, np.ones((2, 2)))
    expected = np.sqrt((1 + 2.0**-22) / (x[0, :128].astype(float) ** 2).sum())
    np.testing.assert_allclose(one.errors, [[expected, 0], [0, 0]])
    assert one.error == pytest.approx(np.sqrt((1 + 2.0**-22) / (x.astype(float) ** 2).sum()))


def test_an_outlier_is_worse_for_one_scale_than_for_tiles(found):
    plain, outlier = found.shown().values()
    assert np.array_equal(outlier[:, 0], plain[:, 0])
    names = list(SCALINGS)
    before, after = (
        [rounded(tensor, **SCALINGS[name]).errors[:, 1] for name in names[:2]] for tensor in (plain, outlier)
    )  # of the tiles beside the outlier's
    assert np.array_equal(after[1], before[1]) and after[0].mean() > before[0].mean()
    assert (
        rounded(outlier, **SCALINGS[names[0]]).underflow
        > 5 * rounded(outlier, **SCALINGS[names[1]]).underflow
    )


def test_every_factor_of_every_product_has_a_row(found):
    by_module = {}
    for row in found.rows:
        by_module.setdefault(row.module, []).append(row.factor)
    assert all(sorted(factors) == ["gradient", "input", "weight"] for factors in by_module.values())
    assert {"layers.0.self_attn.o_proj", "layers.1.mlp.experts.down_proj", "mtp.0.eh_proj"} <= {*by_module}
    assert not any("gate" == name.rsplit(".", 1)[-1] or "lm_head" in name for name in by_module)
    assert all(0 < row.error < 0.06 and 0 <= row.underflow < 0.1 for row in found.rows)


def test_infinities_are_counted_where_they_are():
    x = np.ones((4, 130), np.float32)
    x[1, 3] = np.inf
    row = lost("here", "input", x, (1, 128))
    assert row.infinities == 1 and np.isfinite(row.error)


def test_watching_changes_nothing():
    ids = np.arange(16).reshape(2, 8)
    losses = []
    for watched in (False, True):
        model = DeepSeekModel(SMALL, seed=0)
        with observe(Watch(model) if watched else None), precision(Fp8()):
            losses.append(float(model.loss(ids, ids)))
    assert losses[0] == losses[1]


def test_page_needs_nothing_else_and_shows_every_scaling(found):
    page = found.page()
    assert page.startswith("<!doctype html>") and page.count("<svg") == 4 * len(SCALINGS)
    assert 'src="http' not in page and "<link" not in page
    assert all(name in page and name in repr(found) for name in SCALINGS)
    assert "layers.0.mlp.down_proj" in repr(found) and "layers.0.mlp.down_proj" in found._repr_html_()


def test_command_answers_and_refuses(run, tmp_path):  # noqa: F811
    assert "underflow" in run("fp8")[1]
    code, out, _ = run("fp8", "--html", str(tmp_path / "page.html"))
    assert code == 0 and (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert run("fp8", "--run", "nowhere") == (
        2, "", "error: nowhere is no folder of a run: it has no config.toml\n"
    )  # fmt: skip
