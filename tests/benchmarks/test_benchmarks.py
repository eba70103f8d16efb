"""What the benchmarks measure is what they say: every kernel, the right counts, contenders that may fail."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import policy
from benchmarks.__main__ import added
from benchmarks.conductor import Contender, first_error, in_turn, spread
from benchmarks.figures import draw
from benchmarks.kernel_cases import once, other_calls, primitive_cases
from benchmarks.limits import decoding_bytes, per_token, training_flop
from benchmarks.operations.cases import NAMES, SIZES, inputs
from benchmarks.operations.with_ours import prepare
from benchmarks.scaling import law, slope
from benchmarks.speed import beside_ours
from benchmarks.tables import missing, show
from benchmarks.worker import CONFIG
from layers import DeepSeekConfig, DeepSeekModel
from tinygrad_ds import primitives
from tinygrad_ds.kernels.table import INFERENCE_TWINS, TWINS

ROOT = Path(__file__).parents[2]
BENCH = json.loads(CONFIG.read_text())
TINY = {
    "hidden_size": 16,
    "vocab_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
}


def test_every_fused_twin_has_a_row():
    assert set(TWINS["cpu"]) <= set(primitive_cases()) <= set(primitives)
    assert {*other_calls(), "token_step"} == set(INFERENCE_TWINS["cpu"])  # tokens are decoded by a network


@pytest.mark.parametrize("name", ["rmsnorm", "rope", "router_selection", "embedding"])
def test_a_call_is_timed_and_its_bytes_counted(name):
    case = primitive_cases()[name]()
    times = once(primitives[name].fused["cpu"], case)
    assert times.forward > 0 and times.backward > 0
    read = sum(array.nbytes for array in case.arrays)
    assert times.moved_bytes == case.touched or times.moved_bytes > 2 * read  # by forward and backward


def test_products_of_a_token_are_its_weights():
    """All weights but the embedding and the norms are multiplied once; of the experts, four of sixteen."""
    model, parts = DeepSeekModel(DeepSeekConfig.from_dict(BENCH), seed=None), per_token(BENCH, 0)
    sizes = {path: leaf.size for path, leaf in model.named_leaves() if leaf.ndim > 1}
    experts = sum(size for path, size in sizes.items() if ".experts." in path)
    others = sum(sizes.values()) - experts - sizes["embed_tokens.weight"]
    assert parts["chosen experts"] == experts * 4 / 16
    assert sum(parts.values()) - parts["chosen experts"] == others


def test_attention_is_counted_for_every_pair_of_tokens():
    pairs = 6 * 8 * 256 * 256 * (48 + 32)  # layers, heads, queries, keys
    assert training_flop(BENCH, 3, 256) - 256 * training_flop(BENCH, 3, 0 + 1) == pytest.approx(
        6 * 3 * (pairs - 256 * 6 * 8 * 80)
    )


def test_bytes_of_decoding_grow_with_rows_only_by_other_experts_and_their_latents():
    one, many = decoding_bytes(BENCH, 1, 0), decoding_bytes(BENCH, 10**6, 0)
    experts = 4 * 5 * 16 * 3 * 256 * 128  # all of them, in five layers
    assert one == 4 * sum(per_token(BENCH, 0).values())
    assert many - one == pytest.approx(experts * 12 / 16)
    assert decoding_bytes(BENCH, 8, 512) - decoding_bytes(BENCH, 8, 0) == 4 * 8 * 512 * 6 * (64 + 16)


def test_slopes_are_exponents():
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert slope(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)
    bent = law(sizes, [5.0, 5.0, 5.0, 10.0])
    assert bent["last_exponent"] == pytest.approx(1) and 0 < bent["exponent"] < 1


def test_medians_and_ratios():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    rows = {"ours": {"tokens_per_second": 6.0}, "peer": {"tokens_per_second": 4.0}, "lost": {"error": "x"}}
    beside_ours(rows)
    assert rows["peer"]["ours_is"] == 1.5 and rows["ours"]["ours_is"] == 1 and rows["lost"] == {"error": "x"}


def test_a_contender_trains_decodes_and_reports_its_errors():
    contender = Contender("ours", threads=1, overrides=TINY)
    try:
        assert contender.error is None and "numpy" in contender.versions
        assert "error" not in contender.ask("build")
        losses = [contender.ask("train", batch=4, time=8)["loss"] for _ in range(3)]
        assert abs(losses[0] - np.log(32)) < 0.2 and len(set(losses)) == 3
        shares = contender.ask("profile", batch=4, time=8)["shares"]
        watched = sum(row["forward"] + row["backward"] for row in shares["shares"].values())
        assert 0 < watched < shares["seconds"] and shares["shares"]["attention"]["calls"] == 2
        answers = in_turn([contender], 2, "decode", batch=2, context=3, new=4)["ours"]
        assert len(answers) == 2 and all(answer["seconds_per_step"] > 0 for answer in answers)
        wrong = contender.ask("decode", batch=1, context=-1, new=1)
        assert first_error([answers[0], wrong]) == wrong["error"]
        assert first_error(answers) is None
    finally:
        contender.close()


def test_a_contender_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setenv("TINYGRAD_DS_KERNELS", "slow")
    contender = Contender("ours")
    assert contender.versions is None and "kernels is 'slow'" in contender.error
    assert contender.error == contender.ask("build")["error"]


@pytest.mark.parametrize("name", NAMES)
def test_operations_give_value_and_gradients(name):
    arrays, further, g = inputs(name, *SIZES["small"])
    y, *grads = prepare(name, arrays, further, g)()
    assert y.shape == g.shape and [grad.shape for grad in grads] == [array.shape for array in arrays]


def results(**contenders):
    seconds = {"median": 0.5, "min": 0.4, "max": 0.7}
    row = {
        "seconds": seconds,
        "tokens_per_second": 4096.0,
        "page_faults_per_step": 3,
        "share_of_floor": 0.9,
        "memory_growth_mib": 400.0,
        "first_step_seconds": 1.0,
    }
    rows = {name: row if value is None else {"error": value} for name, value in contenders.items()}
    beside_ours(rows)
    return {"floor_seconds": 0.45, "contenders": rows}


def test_tables_and_figure_name_who_is_missing(tmp_path, capsys):
    found = results(ours=None, jax="No module named 'jax'")
    show(Console(width=120), "train", found)
    printed = capsys.readouterr().out
    assert "0.500" in printed and "jax: No module named 'jax'" in printed
    assert list(missing({"contenders": {"a": {"case": {"error": "e"}}, "b": {"case": {}}}})) == [("a", "e")]
    draw({"machine": {"cpu": "c", "cores": "2", "date": "d"}, "train": found}, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_reinforcement_is_a_contender_whose_steps_learn(monkeypatch):
    monkeypatch.setattr(policy, "PROMPTS", 4)
    monkeypatch.setattr(policy, "NEW", 4)
    ours = policy.Policy({})
    assert 280_000 < ours.build()["parameters"] < 290_000
    before = ours.model.head_weight.data.copy()
    answer = ours.grpo(steps=2)
    assert len(answer["each"]) == 2 and min(answer["each"]) > 0 and 14 < answer["length"] <= 16
    assert not np.array_equal(before, ours.model.head_weight.data) and ours.subject.sampled.signal.any()
    rates = ours.decoding(batch=16)
    assert set(rates) == {"bare", "rollout", "groups"} and min(rates.values()) > 0


def test_the_table_of_reinforcement_says_who_is_missing(capsys):
    row = {"seconds": {"median": 0.25, "min": 0.2, "max": 0.3}, "length": 15.5, "ours_is": 1.0}
    rates = {
        "bare": {"median": 200.0, "min": 1, "max": 300},
        "rollout": {"median": 150.0, "min": 1, "max": 160},
    }
    found = {
        "contenders": {"policy ours": row, "policy trl": {"error": "No module named 'trl'"}},
        "decoding": rates,
    }
    show(Console(width=120), "reinforcement", found)
    printed = capsys.readouterr().out
    assert "0.250" in printed and "0.75" in printed and "policy trl: No module named 'trl'" in printed
    del row["ours_is"]
    found |= {"contenders": {"policy ours": {"error": "lost"}, "policy trl": row}, "decoding": {}}
    show(Console(width=120), "reinforcement", found)
    printed = capsys.readouterr().out
    assert "0.250" in printed and "policy ours: lost" in printed


def test_a_later_run_adds_contenders_and_replaces_its_own():
    before, now = results(ours=None, torch=None), results(ours="lost", jax=None)
    both = added(before, now)["contenders"]
    assert set(both) == {"ours", "torch", "jax"} and both["ours"] == {"error": "lost"}
    assert added({"kernels": {"a": 1}}, {"kernels": {"b": 2}}) == {"kernels": {"b": 2}}


def test_command_line_refuses_what_it_does_not_know():
    for wrong in (["trian"], ["train", "--contenders", "tensorflow"]):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *wrong], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and wrong[-1] in done.stderr
