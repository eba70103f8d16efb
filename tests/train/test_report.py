import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from layers import save_pretrained
from tests.train.tiny import CONFIG, tiny_model
from train import figures
from train.config import Config
from train.metrics import plain
from train.report import experts_text, parameter_table, write_report

BASELINES = {"uniform": 5.2, "token bigram": 2.75, "zlib -9": 2.72, "xz -9e": 2.2, "xz -9e primed": 1.7}
FIGURES = (
    "Training loss",
    "Held-out bits per byte",
    "Load of every expert",
    "Norm of the gradient",
    "Seconds",
)


def records(steps=60):
    """Metrics as a run of a minute leaves them."""
    rng = np.random.default_rng(0)
    made = []
    for step in range(1, steps + 1):
        record = {"step": step, "seconds": float(step), "main": 2 + 5 / step, "mtp": 2.2 + 5 / step}
        record["loads"] = {
            name: rng.integers(50, 60, 4) for name in ("model.layers.1.mlp", "model.layers.2.mlp")
        }
        if step % 10 == 0:
            record |= {"held_out": 2 + 1 / step, "grad_norms": {"layers.0": 1 / step, "lm_head": 0.5}}
        if step in (5, 30, 60):
            record["sample"] = f"a <b>sample</b> & step {step}"
        made.append(plain(record))
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a run's folder, made without any training."""
    folder = tmp_path_factory.mktemp("run")
    place = folder / "checkpoints" / "step-00000060"
    place.mkdir(parents=True)
    save_pretrained(tiny_model("float32"), place)
    Config(prompt="<what> follows").save(folder / "config.toml")
    counts = {"documents": 9, "bytes": 1000, "tokens": 400}
    data = {"train": counts, "held_out": counts, "vocab_size": 37}
    results = {"bits_per_byte": 2.0123, "baselines": BASELINES, "steps": 60, "tokens": 1e4, "seconds": 60.0}
    results["phases"] = {"forward": 20.0, "backward": 30.0, "text and tokens": 3.0}
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    write_report(folder)
    return (folder / "report.html").read_text("utf-8")


def test_report_is_one_file_with_every_figure(page):
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == len(FIGURES)
    for figure, name in zip(drawn, FIGURES):
        root = ElementTree.fromstring(figure)
        assert root.get("aria-label").startswith(name) and root.get("viewBox")
    assert not re.search(r'(src|href)="(?!#)', page) and "<script" not in page and "@import" not in page
    assert "width=device-width" in page


def test_report_says_what_was_reached(page):
    assert "2.012 bits" in page and "2.200" in page and "beats the first, not the second" in page
    for name, level in BASELINES.items():
        assert f"{name} {level:.2f}" in page
    for step in (5, 30, 60):
        assert f"a &lt;b&gt;sample&lt;/b&gt; &amp; step {step}" in page
    assert "&lt;what&gt; follows" in page and "<what>" not in page


def test_same_metrics_give_the_same_figure():
    assert figures.loss_figure(records()) == figures.loss_figure(records())


def test_table_adds_up_to_the_parameters_that_the_model_has():
    model = tiny_model()
    table = parameter_table(CONFIG)
    total, active = (int(n.replace(",", "")) for n in re.findall(r"<td>([\d,]+)</td>", table)[-2:])
    published = [*model.named_parameters(), *model.named_buffers()]
    assert total == sum(p.size for _, p in published)
    idle = CONFIG.n_routed_experts - CONFIG.num_experts_per_tok
    expert = 3 * CONFIG.hidden_size * CONFIG.moe_intermediate_size
    assert (
        total - active == 2 * idle * expert
    )  # one layer with experts and one module for the token after next


@pytest.mark.parametrize(
    ("loads", "word"),
    [([50, 52, 48, 50], "balanced"), ([90, 40, 40, 30], "uneven"), ([99, 50, 51, 0], "collapsed")],
)
def test_loads_are_judged_by_their_end(loads, word):
    early = [{"loads": {"a": [200, 0, 0, 0]}}] * 90
    late = [{"loads": {"a": loads}}] * 10
    assert experts_text(early + late).endswith(f"{word}.")
    assert f"busiest has {max(loads) / 50:.2f}" in experts_text(early + late)


def test_network_without_experts_has_no_figure_of_them():
    bare = [{"seconds": 1.0, "loads": {}}]
    assert figures.load_figure(bare) == "" and experts_text(bare) == "This network has no experts."


def test_means_of_neighbours():
    values = np.array([1.0, 2.0, 6.0, 3.0])
    np.testing.assert_allclose(figures.smooth(values, 3), [1.5, 3.0, 11 / 3, 4.5])
    np.testing.assert_allclose(figures.smooth(values, 1), values)
    assert math.isclose(figures.smooth(np.full(7, 2.5), 4).mean(), 2.5)


def test_a_run_of_one_step_can_be_drawn():
    one = records(1)
    one[0] |= {"held_out": 3.0, "grad_norms": {"layers.0": 0.1}}
    for text in (
        figures.loss_figure(one),
        figures.held_out_figure(one, 3.0, BASELINES),
        figures.load_figure(one),
        figures.gradient_figure(one),
        figures.phases_figure({"forward": 1.0}),
    ):
        assert ElementTree.fromstring(text).tag.endswith("svg")
