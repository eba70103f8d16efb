import json
import re
import shlex
import shutil

import numpy as np
import pytest

from layers import DeepSeekConfig
from tests.train.test_main import call, finished, text
from train.batches import tokenize
from train.checkpoint import Checkpoints, load_model
from train.config import Config
from train.data import load_corpus
from train.metrics import read_metrics
from train.positions import nats_by_position, perplexity_by_part
from train.tokenizer import Tokenizer

__all__ = ["finished", "text"]  # fixtures: a run of four steps at length 16


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """The run, extended four times, and a copy of what stood in its folder before."""
    folder, before = tmp_path_factory.mktemp("extended") / "long", contents(finished)
    with pytest.MonkeyPatch.context() as patch:
        options = ["--factor", 4, "--tokens", 512, "--out", folder]
        assert call("extend", finished, *options, monkeypatch=patch) == 0
    return folder, before


def newest(folder):
    return Checkpoints(folder / "checkpoints").latest()


def test_new_run_reads_four_times_as_far_and_the_old_one_is_untouched(extended, finished):
    folder, before = extended
    assert contents(finished) == before
    old, new = DeepSeekConfig.from_json(newest(finished)), DeepSeekConfig.from_json(newest(folder))
    assert (old.max_position_embeddings, new.max_position_embeddings) == (16, 64)
    assert new.rope_scaling.to_dict() == {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    }
    assert new.replace(max_position_embeddings=16, rope_scaling=None) == old
    settings = Config.load(folder / "config.toml")
    assert (settings.time, settings.schedule.batch, settings.micro_batch, settings.tokens) == (64, 4, 2, 512)
    assert [record["done"] for record in read_metrics(folder / "metrics.jsonl")] == [256, 512]


def test_weights_move_from_those_of_the_run_and_biases_rest(extended, finished):
    before, after = load_model(newest(finished)), load_model(newest(extended[0]))
    moved = 0
    for old, new in zip(before.published(), after.published(), strict=True):
        assert np.abs(new.data - old.data).max() < 0.05
        if not old.leaf.requires_grad:
            assert np.array_equal(new.data, old.data)
        moved += not np.array_equal(new.data, old.data)
    assert moved > 10


def test_results_are_those_of_the_networks(extended, finished, text):
    """All three curves once more, from checkpoints and text, that of before just allowed to go on."""
    folder, _ = extended
    results = json.loads((folder / "results.json").read_text())
    curves = results["perplexity_by_position"]
    assert curves.pop("positions_in_a_part") == 4 and "bits_per_byte" in results
    tokens = tokenize(load_corpus([text]).held_out, Tokenizer.load(finished))
    old, new = load_model(newest(finished)), load_model(newest(folder))
    old.rotary.longest = 64
    stretched = load_model(newest(folder))
    for ours, theirs in zip(stretched.published(), old.published(), strict=True):
        ours.data[...] = theirs.data
    for name, model in {"before": old, "YaRN, untrained": stretched, "YaRN, trained": new}.items():
        nats = nats_by_position(model, tokens, time=64, stride=4, batch=8)
        np.testing.assert_allclose(curves.pop(name), perplexity_by_part(nats, 4), rtol=1e-4)
    assert not curves


def test_page_and_figure_show_it(extended, finished):
    folder, _ = extended
    page = (folder / "extension.html").read_text("utf-8")
    assert "From 16 to 64 tokens" in page and page.count("<svg") == 1 and finished.name in page
    assert "<td>61-64</td>" in page and "original_max_position_embeddings" in page
    assert (folder / "perplexity_by_position.svg").read_text().startswith("<svg")
    assert (folder / "report.html").exists()


def test_table_is_printed_and_factors_multiply(extended, tmp_path, monkeypatch, capsys):
    """An extension extended: the original length stays that of pre-training. It can be resumed as any run."""
    folder, _ = extended
    out = tmp_path / "longer"
    options = ["--factor", 2, "--tokens", 256, "--out", out, "--beta-fast", 16]
    assert call("extend", folder, *options, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert (
        re.search(r"positions +before +YaRN, untrained +YaRN, trained\n +1-16 ", said) and " 113-128 " in said
    )
    config = DeepSeekConfig.from_json(newest(out))
    yarn = config.rope_scaling
    assert (config.max_position_embeddings, yarn.factor, yarn.original_max_position_embeddings) == (
        128,
        8,
        16,
    )
    assert yarn.beta_fast == 16
    assert call("--resume", out, "--tokens", 512, monkeypatch=monkeypatch) == 0
    assert DeepSeekConfig.from_json(newest(out)) == config


BAD_INPUT = {
    "no longer": ("{finished} --factor 1", "factor is 1 but must be at least 2"),
    "negative factor": ("{finished} --factor -4", "factor is -4 but must be at least 2"),
    "no tokens": ("{finished} --tokens 0", "tokens is 0 but must be at least 1"),
    "no rate": ("{finished} --rate 0", "rate is 0.0 but must be above 0"),
    "no turns": ("{finished} --beta-slow 0", "beta_slow is 0.0 but must be above 0"),
    "ramp upside down": ("{finished} --beta-fast 1", "beta_slow 1.0 but it must be below beta_fast, 1.0"),
    "no run": ("{folder}", "config.toml does not exist"),
    "no checkpoint": ("{bare}", "holds no checkpoint"),
    "text too short for it": ("{finished} --factor 1000", "a row has 16,000: take a smaller factor"),
    "folder that cannot be": ("{finished} --out {folder}/file/run", "cannot be made: Not a directory"),
    "changed text": ("{changed}", "the text is not what .*changed was trained on"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_gets_one_sentence_and_code_2(name, finished, text, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for copy in ("bare", "changed"):
        shutil.copytree(finished, tmp_path / copy)
    shutil.rmtree(tmp_path / "bare/checkpoints")
    data = json.loads((finished / "data.json").read_text()) | {"sha256": "0" * 64}
    (tmp_path / "changed/data.json").write_text(json.dumps(data))
    arguments, sentence = BAD_INPUT[name]
    places = {each: tmp_path / each for each in ("bare", "changed")}
    arguments = shlex.split(arguments.format(finished=finished, folder=tmp_path, **places))
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    before = contents(finished)
    assert call("extend", *arguments, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"error: [^\n]*{sentence}[^\n]*\n", said), said
    assert not (tmp_path / "out").exists() and contents(finished) == before


def test_folder_that_exists_is_not_overwritten(extended, finished, monkeypatch, capsys):
    folder, _ = extended
    before = contents(folder)
    assert call("extend", finished, "--out", folder, monkeypatch=monkeypatch) == 2
    assert re.fullmatch(r"error: .*long exists: name another folder.*\n", capsys.readouterr().err)
    assert contents(folder) == before


def test_folder_of_the_new_run_is_named_after_the_old(finished, tmp_path, monkeypatch):
    run = tmp_path / "mine"
    shutil.copytree(finished, run)
    assert call("extend", f"{run}/", "--tokens", 64, "--factor", 2, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "mine-extended/extension.html").exists()
