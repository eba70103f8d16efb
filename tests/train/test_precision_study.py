"""Training in FP8 through the one trainer, and the study that compares it with float32."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from layers.precision import EXACT, Bfloat16, Fp8
from tests.train.test_main import call, flags, text  # noqa: F401
from tinygrad_ds.dtypes import dtype as named_dtype
from tinygrad_ds.ops.quantize import Infinities
from train import precision_study
from train.checkpoint import Checkpoints
from train.config import Config
from train.errors import UserError
from train.metrics import read_metrics
from train.precision_study import ABLATIONS, Study, compare, difference_figure, loss_figure, study, table
from train.progress import describe

FALLING = [5.0 - 0.1 * step for step in range(20)]
LOSSES = {
    "float32": {0: FALLING, 1: [loss + 0.1 for loss in FALLING]},
    "FP8": {0: [1.002 * loss for loss in FALLING], 1: [0.998 * (loss + 0.1) for loss in FALLING]},
    "bfloat16": {0: FALLING},
}
OPTIONS = ("--optimizer", "adamw", "--precision", "fp8", "--stochastic")


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):  # noqa: F811
    """The folder of a run of four steps in FP8, rounded at random."""
    folder = tmp_path_factory.mktemp("fp8") / "done"
    with pytest.MonkeyPatch.context() as patch:
        given = "--text", text, "--out", folder, *flags(), *OPTIONS
        assert call(*given, monkeypatch=patch) == 0
    return folder


def test_settings_name_the_products(run):
    config = Config.load(run / "config.toml")
    assert config.precision == "fp8" and config.fp8 == Fp8(stochastic=True) == config.products()
    assert isinstance(Config(precision="bfloat16").products(), Bfloat16) and Config().products() is EXACT


def test_run_in_fp8_goes_on_bit_for_bit(run, tmp_path, monkeypatch):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    lines = (again / "metrics.jsonl").read_bytes().splitlines(True)
    (again / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    shutil.rmtree(again / "checkpoints/step-00000004")
    assert call("--resume", again, monkeypatch=monkeypatch) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (Checkpoints(each / "checkpoints").latest() / name for each in (again, run))
        assert ours.read_bytes() == theirs.read_bytes()


def test_checkpoint_holds_float32_weights_and_bfloat16_moments(run):
    folder = Checkpoints(run / "checkpoints").latest()
    weights, state = (load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer"))
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    moments = [array for name, array in state.items() if name[:2] in ("m.", "v.")]
    assert len(moments) > 20 and {array.dtype for array in moments} == {named_dtype("bfloat16")}


def test_every_step_tells_its_infinities(run):
    assert [record["infinities"] for record in read_metrics(run / "metrics.jsonl")] == [0, 0, 0, 0]
    met = Infinities(3)
    record = {"infinities": float(met.taken())}
    assert (record["infinities"], met.count) == (3, 0)
    shown = {"seconds": 1.0, "step": 1, "loss": 2.0, "loads": {}, "total": 4, "done": 1}
    assert "3 infinities made finite by FP8" in describe(shown | record, None, 0.0)[1]
    assert "infinities" not in describe(shown, None, 0.0)[1]


def test_tile_that_is_all_nan_stops_the_run_with_a_sentence(run, tmp_path, monkeypatch, capsys):
    """As a weight of NaN makes it: a traceback would hide that the checkpoint is whole."""
    again = tmp_path / "run"
    shutil.copytree(run, again)
    real = precision_study.run.open_model

    def spoilt(folder):
        model, fill = real(folder)

        def fill_and_spoil(model):
            fill(model)
            model.layers[0].self_attn.o_proj.weight.data[...] = np.nan

        return model, fill_and_spoil

    monkeypatch.setattr(precision_study.run, "open_model", spoilt)
    assert call("--resume", again, "--tokens", 2048, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert re.search(r"stopped: step 5: quantize: rows 0 to 15, .* all NaN, .*step-00000004 is whole", said)


def test_unknown_variation_is_refused(monkeypatch, capsys, tmp_path):
    arguments = "--gradient-format", "e3m4", "--out", tmp_path / "out"
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    assert "e4m3" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"seeds": (3,)}, "seeds are (3,) but the noise"),
        ({"seeds": (3, 3)}, "needs two that differ"),
        ({"steps": 9}, "steps is 9 but must be at least 10"),
        ({"only": ("bfloat16", "int8")}, "'int8' is no variation: there are one scale a tensor"),
    ],
)
def test_what_cannot_be_studied(given, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        Study(**given)


def test_study_by_command_refuses_with_one_sentence(monkeypatch, capsys, tmp_path):
    given = "compare-precision", "--only", "int8", "--out", tmp_path / "out"
    assert call(*given, monkeypatch=monkeypatch) == 2
    assert re.fullmatch(r"error: 'int8' is no variation: [^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_differences_are_those_of_the_last_tenth_of_the_same_seed():
    found = compare(LOSSES)
    ends = [np.mean(FALLING[-2:]), np.mean(FALLING[-2:]) + 0.1]
    assert found["variants"]["float32"]["loss"] == pytest.approx({0: ends[0], 1: ends[1]})
    assert found["variants"]["FP8"]["percent"] == pytest.approx({0: 0.2, 1: -0.2})
    assert found["variants"]["bfloat16"]["percent"] == {0: 0}
    assert found["noise"] == pytest.approx(100 * np.std(ends, ddof=1) / np.mean(ends))


def test_table_has_a_row_for_each_variant_and_the_noise():
    lines = table(compare(LOSSES)).splitlines()
    assert lines[2] == "| float32 | 3.1500 3.2500 |  |"
    assert lines[3] == "| FP8 | 3.1563 3.2435 | +0.200 % -0.200 % |"
    assert lines[4].startswith("| bfloat16 |") and lines[-1].startswith(
        "Between seeds float32's loss differs"
    )


def test_figures_show_every_curve_and_variant():
    curves, differences = loss_figure(LOSSES), difference_figure(compare(LOSSES))
    assert curves.startswith("<svg role") and "FP8" in curves and "float32" in curves
    assert "bfloat16" in differences and ">float32<" not in differences


def test_study_trains_what_is_missing_and_no_more(monkeypatch, tmp_path):
    """With a trainer that only writes losses: variations take the first seed, and what is there stays."""
    trained = []

    def made_up(config, display, team):
        trained.append((config.precision, config.fp8, config.seed, config.tokens))
        config.out.mkdir(parents=True)
        lines = [json.dumps({"main": loss}) for loss in LOSSES["float32"][config.seed]]
        (config.out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        (config.out / "results.json").write_text("{}")

    monkeypatch.setattr(precision_study.run, "start", made_up)
    asked = Study(out=tmp_path / "study", steps=20, seeds=(0, 1), only=("bfloat16", "E5M2 gradients"))
    cut_short = tmp_path / "study" / "fp8-1"
    cut_short.mkdir(parents=True)
    study(asked, lambda: None)
    tokens = 20 * 16 * 128
    assert trained == [
        ("float32", Fp8(), 0, tokens),
        ("float32", Fp8(), 1, tokens),
        ("fp8", Fp8(), 0, tokens),
        ("fp8", Fp8(), 1, tokens),
        ("bfloat16", Fp8(), 0, tokens),
        ("fp8", Fp8(gradient_format="e5m2"), 0, tokens),
    ]
    names = {path.name for path in asked.out.iterdir() if path.is_file()}
    assert names == {"results.json", "table.md", "losses.svg", "differences.svg"}
    study(asked, lambda: None)
    assert len(trained) == 6


def test_every_variation_differs_from_the_recipe_in_one_thing():
    for name, (kind, recipe) in ABLATIONS.items():
        changed = [field for field, value in vars(recipe).items() if value != getattr(Fp8(), field)]
        assert (kind, len(changed)) == (("bfloat16", 0) if name == "bfloat16" else ("fp8", len(changed)))
        assert kind == "bfloat16" or changed
        assert len(changed) <= 1 + (name == "14-bit sums, never promoted")
