import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import DeepSeekConfig, DeepSeekModel
from layers.plan import MTP, attention_numbers, cache_numbers, count, parts, weight_bytes
from layers.roofline import (
    Work,
    attention_flops,
    decoding_step,
    forward_flops,
    kept_numbers,
    memory_to_serve,
    memory_to_train,
    prefill,
    products,
    touched_bytes,
    training_step,
)
from tests.layers.cases import CASES, FORWARD_ONLY, GOLDEN, facts_of, tiny
from tinygrad_ds.device import owner
from tinygrad_ds.ops.decoding import linear_step
from tinygrad_ds.tape import Record, arrays_in

CONFIGS = Path(__file__).parent.parent / "golden" / "configs"
V3 = DeepSeekConfig.from_json(CONFIGS / "deepseek_v3.json")
BILLION = 1e9


def published(name: str) -> DeepSeekConfig:
    return DeepSeekConfig.from_json(CONFIGS / f"{name}.json")


@st.composite
def configs(draw) -> DeepSeekConfig:
    """Small networks of every kind."""
    kind = draw(st.sampled_from(["mla", "mla", "mha", "gqa", "mqa"]))
    heads = draw(st.integers(1, 3)) * 2
    changes = {
        "attention_kind": kind,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if kind == "gqa" else None,
        "q_lora_rank": draw(st.sampled_from([None, 3, 6])),
        "kv_lora_rank": draw(st.integers(1, 8)),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_nextn_predict_layers": draw(st.integers(0, 2)),
        "n_shared_experts": draw(st.integers(0, 2)),
        "vocab_size": draw(st.integers(2, 20)),
    }
    changes["first_k_dense_replace"] = draw(st.integers(0, changes["num_hidden_layers"]))
    if draw(st.booleans()):
        changes |= {"model_type": "deepseek_v2", "topk_method": "greedy"}
    return tiny(**changes)


@settings(max_examples=40)
@given(configs())
def test_counts_are_those_of_the_network_itself(config):
    model = DeepSeekModel(config)
    sizes = {part.name: part.data.size for part in model.published()}
    assert count(config, mtp=True) == sum(sizes.values())
    trunk = {name: n for name, n in sizes.items() if not beyond_the_trunk(name, config)}
    assert count(config) == sum(trunk.values())
    idle = config.n_routed_experts - config.num_experts_per_tok
    one = 3 * config.hidden_size * config.moe_intermediate_size
    tied = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    assert count(config, active=True) == sum(trunk.values()) - moe * idle * one + tied
    cache = model.new_cache(3)
    model(np.zeros((3, 5), dtype=int), cache)
    assert cache.nbytes == 3 * 5 * 4 * cache_numbers(config)
    assert weight_bytes(config, "float32", mtp=True) == 4 * sum(sizes.values())


def beyond_the_trunk(name: str, config: DeepSeekConfig) -> bool:
    words = name.split(".")
    return words[:2] == ["model", "layers"] and int(words[2]) >= config.num_hidden_layers


@pytest.mark.parametrize("case", [*CASES, *FORWARD_ONLY])
def test_counts_are_those_that_transformers_writes(case):
    config = DeepSeekConfig.from_json(GOLDEN / case)
    repeated = 2 * config.vocab_size * config.hidden_size * config.num_nextn_predict_layers
    assert count(config, mtp=True) + repeated == facts_of(case)["parameters"]


def test_v3_has_671_billion_of_which_37_are_active():
    assert round(count(V3) / BILLION, 2) == 671.03
    assert round(count(V3, active=True) / BILLION, 2) == 37.55
    assert round(count(V3, active=True, embedding=False) / BILLION, 2) == 36.63
    assert 682 < count(V3, mtp=True) / BILLION < 683, "published: 11.5 billion of the MTP module's own"


@pytest.mark.parametrize(
    ("name", "total", "active"), [("deepseek_v2", 236, 21), ("deepseek_v2_lite", 15.7, 2.4)]
)
def test_v2_has_what_was_published(name, total, active):
    config = published(name)
    assert count(config) / BILLION == pytest.approx(total, rel=0.005)
    assert count(config, active=True, embedding=False) / BILLION == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2", "deepseek_v2_lite"])
def test_published_cache_sizes(name):
    config = published(name)
    layers = config.num_hidden_layers
    assert cache_numbers(config) == layers * (512 + 64)
    heads = config.replace(
        qk_nope_head_dim=64, extra={"attention_kind": "mha"}
    )  # then d_qk = d_v = d_h = 128
    assert cache_numbers(heads) == 2 * config.num_attention_heads * 128 * layers
    assert cache_numbers(V3, mtp=True) == 62 * 576
    mqa = heads.replace(num_key_value_heads=1, extra={"attention_kind": "mqa"})
    assert cache_numbers(config) / cache_numbers(mqa) == 2.25, "about GQA with 2.25 groups"


def test_v3_in_fp8_is_as_large_as_its_files():
    """The published shards hold 688.6 GB, embedding and head a second time in the MTP module included."""
    repeated = 2 * 2 * V3.vocab_size * V3.hidden_size
    assert (weight_bytes(V3, "float8", mtp=True) + repeated) / BILLION == pytest.approx(688.6, rel=0.001)


def test_every_part_is_named_once_and_active_parts_are_no_more_than_all():
    for config in (V3, published("deepseek_v2_lite"), tiny(n_shared_experts=0, tie_word_embeddings=True)):
        names = [part.name for part in parts(config)]
        assert len(set(names)) == len(names)
        assert all(part.active <= part.total or part.name == "output head" for part in parts(config))
        assert any(name.startswith(MTP) for name in names) == bool(config.num_nextn_predict_layers)


def counted_flops(model, call) -> int:
    """Operations of all products that a call makes: 2 for each term of each sum."""
    import tinygrad_ds as tg

    total = 0
    names = ("linear", "experts_in", "experts_out", "attention", "matmul")
    kept = {name: tg.primitives[name].forward for name in names}

    def watch(name):
        def forward(*arrays, **options):
            nonlocal total
            if name == "linear":
                total += 2 * math.prod(arrays[0].shape[:-1]) * math.prod(arrays[1].shape)
            elif name == "experts_in":
                total += 2 * arrays[2].size * math.prod(arrays[1].shape[1:])
            elif name == "experts_out":
                total += 2 * len(arrays[0]) * math.prod(arrays[2].shape[1:])
            elif name == "attention":
                q, k, v = arrays
                total += 2 * math.prod(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3])
            else:  # a per-head product of MLA's absorbed form
                a, b = arrays
                total += 2 * math.prod(a.shape) * b.shape[-1]
            return kept[name](*arrays, **options)

        return forward

    def head(x, weight):
        nonlocal total
        total += 2 * len(x) * weight.size
        return x @ weight.T

    with pytest.MonkeyPatch.context() as patch, tg.using(kernels="reference"), tg.no_grad():
        for name in kept:
            patch.setattr(tg.primitives[name], "forward", watch(name))
        patch.setattr(linear_step, "reference", head)
        patch.setattr("layers.model.covers", lambda model: False)  # the primitives, for one token too
        call()
    return total


@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_operations_are_those_that_a_pass_makes(kind):
    config = tiny(attention_kind=kind, num_key_value_heads=1 if kind == "gqa" else None)
    model = DeepSeekModel(config)
    ids = np.zeros((2, 7), dtype=int)
    made = counted_flops(model, lambda: model(ids))
    hidden = attention_flops(config, 7) - attention_flops(config, 4)  # scores that the reference makes too
    assert made == forward_flops(config, 2, 7) + 2 * 7 * hidden
    cache = model.new_cache(2)
    model(ids, cache)
    made = counted_flops(model, lambda: model(ids[:, :1], cache))
    assert made == 2 * (2 * products(config) + attention_flops(config, 8, absorbed=True))
    assert decoding_step(config, 2, 8, "float32").flops == made


def test_mtp_modules_cost_a_block_and_the_head_again():
    config = tiny(num_nextn_predict_layers=1)
    d, expert = config.hidden_size, 3 * config.hidden_size * config.moe_intermediate_size
    experts = (config.num_experts_per_tok + config.n_shared_experts) * expert
    router, joining, head = config.n_routed_experts * d, 2 * d * d, config.vocab_size * d
    more = attention_numbers(config)[0] + experts + router + joining + head
    assert products(config, mtp=True) - products(config) == more


def kept_bytes(model, loss) -> int:
    """Bytes of all that the tape keeps for backward, parameters and rows of scores excepted."""
    parameters = {id(owner(leaf.data)) for leaf in model.parameters()}
    memory, seen, waiting = {}, set(), [loss.record]
    while waiting:
        record = waiting.pop()
        if id(record) in seen:
            continue
        seen.add(id(record))
        waiting += [e.target for e in record.edges if e is not None and isinstance(e.target, Record)]
        for array in arrays_in(record.saved):
            if not (record.pair.name == "attention" and array.ndim == 5):
                memory[id(owner(array))] = owner(array).nbytes
    return sum(bytes for key, bytes in memory.items() if key not in parameters)


@pytest.mark.parametrize("kind", ["mla", "gqa"])
@pytest.mark.parametrize("q_lora_rank", [None, 24])
@pytest.mark.parametrize("dense", [0, 2])
def test_memory_for_backward_is_what_the_tape_keeps(kind, q_lora_rank, dense):
    config = tiny(
        attention_kind=kind,
        num_key_value_heads=2 if kind == "gqa" else None,
        q_lora_rank=q_lora_rank,
        first_k_dense_replace=dense,
        hidden_size=40,
        num_attention_heads=4,
        kv_lora_rank=16,
        moe_intermediate_size=24,
        intermediate_size=80,
        vocab_size=100,
    )
    model, ids = DeepSeekModel(config), np.zeros((3, 20), dtype=int)
    kept = kept_bytes(model, model.loss(ids, ids))
    assert memory_to_train(config, 3, 20)["kept for backward"] == 4 * 60 * kept_numbers(config)
    assert kept == pytest.approx(4 * 60 * kept_numbers(config), rel=0.15)


@pytest.mark.parametrize("modules", [0, 2])
def test_recomputing_keeps_inputs_alone(modules):
    config = tiny(num_hidden_layers=3, num_nextn_predict_layers=modules, hidden_size=40, vocab_size=20)
    model, ids = DeepSeekModel(config), np.zeros((3, 20), dtype=int)
    model.recompute = True
    kept = kept_bytes(model, model.loss(ids, ids, mtp_weight=0.3 if modules else 0.0))
    numbers = kept_numbers(config, recompute=True)
    heads = 4 * 20 * 40 * (1 + modules)  # on a CPU the head has its weight's gradient ready
    shared = (
        4 * 60 * 40 if modules else 0
    )  # and the last norm keeps its result, which is an input of a module
    assert numbers == (3 + 2 + 3 * modules) * 40
    assert kept - heads + shared == pytest.approx(4 * 60 * numbers, rel=0.05)


def test_memory_adds_up():
    weights = 4 * count(V3, mtp=True)
    train = memory_to_train(V3, 1, 1)
    assert (train["weights"], train["gradients"], train["moments"]) == (weights, weights, 2 * weights)
    assert memory_to_serve(V3, 8, 1000, "bfloat16") == {
        "weights": 2 * count(V3),
        "cache": 8 * 1000 * 61 * 576 * 2,
    }
    assert memory_to_serve(V3, 1, 1, "float8")["cache"] == 61 * 576 * 2
    again = memory_to_train(V3, 4, 4096, recompute=True)
    assert list(again)[-1] == "one block, computed again" and list(train)[-1] == "logits"
    assert again["kept for backward"] == 4 * 4 * 4096 * (61 + 2 + 3) * 7168


def test_few_tokens_touch_few_experts():
    everything = weight_bytes(V3, "bfloat16") - 2 * V3.vocab_size * V3.hidden_size
    one = 2 * count(V3, active=True, embedding=False) + 2 * V3.hidden_size
    assert touched_bytes(V3, 1, "bfloat16") == pytest.approx(one)
    assert touched_bytes(V3, 10**6, "bfloat16") == pytest.approx(everything + 2 * V3.vocab_size * 7168)
    assert touched_bytes(V3, 8, "bfloat16") < 8 * one


def test_the_longer_of_both_limits_counts():
    work = Work(tokens=4, flops=1000.0, bytes=100.0)
    assert work.seconds(10, 10) == 100 and work.limit(10, 10) == "compute"
    assert work.seconds(1000, 10) == 10 and work.limit(1000, 10) == "memory"


def test_reading_is_for_the_processor_and_one_token_for_the_memory():
    gpu = 1e15, 3e12
    assert prefill(V3, 8, 4096, "float8").limit(*gpu) == "compute"
    assert decoding_step(V3, 1, 4096, "float8").limit(*gpu) == "memory"
    step = training_step(V3, 1, 4096)
    assert step.tokens == 4096 and step.flops == 3 * forward_flops(V3, 1, 4096, mtp=True)


def test_training_v3_takes_the_published_hours_within_reason():
    """14.8 T tokens in 2.664 M H800 hours: between a fifth and half of an H800's dense FP8 peak."""
    operations = 3 * forward_flops(V3, 1, 4096, mtp=True) / 4096 * 14.8e12
    rate = operations / (2.664e6 * 3600)
    assert 0.2 < rate / 1.979e15 < 0.5


def run_inspect(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    from layers.__main__ import main

    monkeypatch.setattr("sys.argv", ["layers", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_inspect_shows_published_totals(capsys, monkeypatch):
    code, out, err = run_inspect(capsys, monkeypatch, "inspect", str(CONFIGS / "deepseek_v3.json"))
    lines = {line.split("  ")[0].strip(): line.split() for line in out.splitlines() if line.strip()}
    assert code == 0 and err == ""
    assert lines["all without MTP"][3:5] == ["671.03", "B"] and lines["all without MTP"][-2:] == [
        "37.55",
        "B",
    ]
    assert out.count("36.63 B") == 1 and "70,272" in lines["MLA"]
    assert "Weights in the folder" not in out


def test_inspect_reads_the_headers_of_a_folder(capsys, monkeypatch):
    code, out, _ = run_inspect(
        capsys, monkeypatch, "inspect", str(GOLDEN / "v3_fp8"), "--batch", "2", "--length", "64"
    )
    assert code == 0 and "Memory at batch 2, length 64" in out and "again" not in out
    assert "float8_e4m3fn" in out and "to serve, float8" in out


def test_inspect_tells_what_recomputing_takes(capsys, monkeypatch):
    arguments = "inspect", str(CONFIGS / "deepseek_v3.json"), "--recompute"
    code, out, _ = run_inspect(capsys, monkeypatch, *arguments)
    assert code == 0 and "to train, float32 and AdamW, blocks computed again" in out
    assert "one block, computed again" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "nowhere"], "nowhere cannot be read"),
        (["inspect", str(CONFIGS / "deepseek_v3.json"), "--length", "0"], "length is 0 but must be above 0"),
        (["inspect", str(CONFIGS)], "cannot be read"),
    ],
)
def test_inspect_refuses_in_one_sentence(capsys, monkeypatch, arguments, said):
    code, out, err = run_inspect(capsys, monkeypatch, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_inspect_lists_every_problem_of_a_config(capsys, monkeypatch, tmp_path):
    broken = json.loads((CONFIGS / "deepseek_v3.json").read_text()) | {"hidden_size": 0, "vocab_size": "x"}
    (tmp_path / "config.json").write_text(json.dumps(broken))
    code, out, err = run_inspect(capsys, monkeypatch, "inspect", str(tmp_path))
    assert code == 2 and out == "" and "hidden_size is 0" in err and "vocab_size is 'x'" in err
    (tmp_path / "config.json").write_text((CONFIGS / "deepseek_v3.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    code, out, err = run_inspect(capsys, monkeypatch, "inspect", str(tmp_path))
    assert code == 2 and "is no safetensors file" in err and out == ""
