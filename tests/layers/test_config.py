import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers.config import ConfigError, DeepSeekConfig, RopeScaling

CONFIGS = Path(__file__).parent.parent / "golden" / "configs"
PUBLISHED = sorted(path.stem for path in CONFIGS.glob("*.json"))
SMALL = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
RESPELT = {"dtype", "rope_parameters"}  # of transformers 5: written back in the published spelling


def published(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def refused(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        DeepSeekConfig(**settings)
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_come_back_as_they_were(name, tmp_path):
    settings = published(name)
    config = DeepSeekConfig.from_json(CONFIGS / f"{name}.json")
    config.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written.get(key, "gone") for key in settings if key not in RESPELT} == {
        key: value for key, value in settings.items() if key not in RESPELT
    }
    assert DeepSeekConfig.from_json(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_both_spellings_mean_the_same():
    old, new = (DeepSeekConfig.from_dict(published(f"deepseek_v3{end}")) for end in ("", "_transformers5"))
    differing = {field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)}
    assert differing == {"extra", "quantization_config"}
    assert new.rope_scaling == RopeScaling(40, 4096, "yarn", 32, 1, 1.0, 1.0)
    assert new.extra["head_dim"] == 64 and new.qk_head_dim == 192


def test_default_rotary_is_no_scaling():
    plain = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    config = DeepSeekConfig.from_dict(plain)
    assert config.rope_scaling is None and config.rope_theta == 5e5
    assert DeepSeekConfig.from_dict({"rope_scaling": {"type": "default"}}).rope_scaling is None
    assert DeepSeekConfig.from_dict({"rope_scaling": {}}).rope_scaling is None


def test_the_families_differ_where_nothing_is_said():
    v3, v2 = DeepSeekConfig(), DeepSeekConfig(model_type="deepseek_v2", num_experts_per_tok=6)
    assert (v3.scoring_func, v3.topk_method, v3.n_group, v3.topk_group) == ("sigmoid", "noaux_tc", 8, 4)
    assert (v3.norm_topk_prob, v3.routed_scaling_factor, v3.num_nextn_predict_layers) == (True, 2.5, 1)
    assert (v2.scoring_func, v2.topk_method, v2.n_group, v2.topk_group) == ("softmax", "greedy", 1, 1)
    assert (v2.norm_topk_prob, v2.routed_scaling_factor, v2.num_nextn_predict_layers) == (False, 1.0, 0)
    assert v3.has_correction_bias and not v2.has_correction_bias


def test_null_groups_and_shared_experts_are_read_as_none_of_them():
    config = DeepSeekConfig.from_dict(
        {"n_group": None, "topk_group": None, "n_shared_experts": None, "q_lora_rank": None}
    )
    assert (config.n_group, config.topk_group, config.n_shared_experts) == (1, 1, 0)
    assert config.q_lora_rank is None and config.to_dict()["q_lora_rank"] is None


def test_a_config_is_frozen_hashable_and_replaced_with_checks():
    config = DeepSeekConfig(**SMALL)
    assert hash(config) == hash(DeepSeekConfig(**SMALL)) and config == DeepSeekConfig(**SMALL)
    assert config.replace(topk_group=1).topk_group == 1
    with pytest.raises(ConfigError):
        config.replace(topk_group=5)
    with pytest.raises(AttributeError):
        config.topk_group = 1


def test_attention_kind_is_kept_beside_the_published_fields():
    heads = {"num_attention_heads": 8, **SMALL}
    assert DeepSeekConfig(**heads).attention_kind == "mla"
    mqa = DeepSeekConfig.from_dict({"attention_kind": "mqa", **heads})
    assert mqa.num_key_value_heads == 1 and mqa.to_dict()["attention_kind"] == "mqa"
    gqa = DeepSeekConfig(num_key_value_heads=2, extra={"attention_kind": "gqa"}, **heads)
    assert gqa.attention_kind == "gqa" and DeepSeekConfig.from_dict(gqa.to_dict()) == gqa


def test_layers_with_experts():
    config = DeepSeekConfig(num_hidden_layers=4, first_k_dense_replace=2)
    assert [config.is_moe(layer) for layer in range(5)] == [False, False, True, True, True]


REFUSALS = [
    (
        {"num_experts_per_tok": 9},
        "num_experts_per_tok is 9 but only 2 of 4 groups of 4 experts stay: at most 8",
    ),
    ({"n_group": 3}, "n_group is 3 but must divide the 16 routed experts into equal groups"),
    ({"topk_group": 5}, "topk_group is 5 but there are only 4 groups: at most 4"),
    (
        {"n_group": 16, "topk_group": 8},
        "n_group is 16 for 16 experts, 1 in each, but a group is judged by its 2 best experts",
    ),
    ({"qk_rope_head_dim": 7}, "qk_rope_head_dim is 7 but rotary embedding turns pairs: take an even number"),
    ({"hidden_size": -1}, "hidden_size is -1 but must be a whole number of at least 1"),
    ({"hidden_size": 48.0}, "hidden_size is 48.0 but must be a whole number of at least 1"),
    ({"vocab_size": "120"}, "vocab_size is '120' but must be a whole number of at least 1"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True but must be a whole number of at least 1"),
    ({"q_lora_rank": 0}, "q_lora_rank is 0 but must be a whole number of at least 1"),
    ({"n_shared_experts": -1}, "n_shared_experts is -1 but must be a whole number of at least 0"),
    ({"first_k_dense_replace": 62}, "first_k_dense_replace is 62 but there are only 61 layers: at most 61"),
    (
        {"num_key_value_heads": 4},
        "num_key_value_heads is 4 but in MLA each of the 128 heads has keys of its own",
    ),
    ({"rope_theta": 0}, "rope_theta is 0 but must be a number above 0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan but must be a number above 0"),
    ({"initializer_range": -0.1}, "initializer_range is -0.1 but must be a number of at least 0"),
    ({"attention_bias": 1}, "attention_bias is 1 but must be true or false"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu' but feed-forward parts here are SwiGLU: set it to 'silu'"),
    ({"moe_layer_freq": 2}, "moe_layer_freq is 2 but all layers after the dense have experts here"),
    ({"model_type": "llama"}, "model_type is 'llama' but only deepseek_v3 and deepseek_v2 are known here"),
    ({"scoring_func": "softmax"}, "scoring_func is 'softmax' but deepseek_v3 scores by 'sigmoid'"),
    ({"topk_method": "greedy"}, "topk_method is 'greedy' but deepseek_v3 chooses by 'noaux_tc'"),
    ({"quantization_config": "fp8"}, "quantization_config is 'fp8' but must be an object, or absent"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2}},
        "the type of rope_scaling is 'linear' but only 'yarn'",
    ),
    ({"rope_scaling": {"factor": 2}}, "the type of rope_scaling is missing but only 'yarn'"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling has no factor"),
    (
        {"rope_scaling": {"type": "yarn", "factor": 0.5}},
        "rope_scaling has factor 0.5 but needs a number of at",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 40}},
        "rope_scaling has beta_slow 40 but it must",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 0}},
        "rope_scaling has beta_slow 0 but must be above 0, such as 1 or 32",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1},
        "rope_theta is 1 but must be above 1 with rope_scaling",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2, "speed": 1}},
        "rope_scaling has speed, which YaRN does not",
    ),
    ({"rope_scaling": 3}, "rope_scaling is 3 but must be an object like"),
    ({"extra": {"balance_counts": "loads"}}, "balance_counts is 'loads': choose scores or choices"),
    ({"extra": {"attention_kind": "linear"}}, "attention_kind is 'linear': choose one of mla, mha, gqa, mqa"),
    (
        {"extra": {"attention_dropout": 0.1}},
        "attention_dropout is 0.1 but nothing is dropped here: set it to 0",
    ),
    (
        {"extra": {"attention_kind": "mqa"}, "num_key_value_heads": 2},
        "num_key_value_heads is 2 but in MQA all",
    ),
    (
        {"extra": {"attention_kind": "gqa"}, "num_key_value_heads": 3},
        "num_key_value_heads is 3 but must divide",
    ),
    (
        {"model_type": "deepseek_v2", "norm_topk_prob": True},
        "norm_topk_prob is true but no published V2 model",
    ),
    (
        {"model_type": "deepseek_v2", "num_experts_per_tok": 17},
        "num_experts_per_tok is 17 but there are only 16",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSALS, ids=[sentence[:40] for _, sentence in REFUSALS])
def test_impossible_values_get_one_sentence(settings, sentence):
    said = refused(**(SMALL | settings))
    assert said.startswith(sentence) and "\n" not in said


def test_all_problems_are_told_at_once():
    said = refused(hidden_size=0, vocab_size=-3, rope_scaling={"type": "dynamic"}, hidden_act="relu").split(
        "\n"
    )
    assert [line.split()[0] for line in said] == ["the", "vocab_size", "hidden_size", "hidden_act"]
    said = refused(qk_rope_head_dim=3, first_k_dense_replace=70, topk_group=9).split("\n")
    assert [line.split()[0] for line in said] == ["qk_rope_head_dim", "first_k_dense_replace", "topk_group"]


def test_a_network_without_experts_need_not_route():
    dense = {"num_hidden_layers": 2, "first_k_dense_replace": 2, "num_experts_per_tok": 200}
    assert DeepSeekConfig(num_nextn_predict_layers=0, **dense).is_moe(1) is False
    assert "num_experts_per_tok is 200" in refused(num_nextn_predict_layers=1, **dense)


def test_files_that_are_no_config(tmp_path):
    for text, said in {
        '{"hidden_size": }': "is not JSON",
        "[1]": "holds a JSON list",
        "\x00\xff": "is not JSON",
    }.items():
        path = tmp_path / "config.json"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=said) as caught:
            DeepSeekConfig.from_json(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        DeepSeekConfig.from_json(tmp_path / "absent.json")


@given(
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(1, 70),
    st.sampled_from(["noaux_tc", "greedy", "group_limited_greedy"]),
)
def test_a_config_passes_exactly_when_routing_can_choose(experts, groups, kept, chosen, method):
    """Counted from the other side: how many experts can be chosen at all."""
    size, rest = divmod(experts, groups)
    if method == "greedy":
        possible = chosen <= experts
    else:
        possible = rest == 0 and kept <= groups and chosen <= size * kept
    if method == "noaux_tc":
        possible = possible and size >= 2
    family = "deepseek_v3" if method == "noaux_tc" else "deepseek_v2"
    settings = {
        "model_type": family,
        "topk_method": method,
        "n_routed_experts": experts,
        "n_group": groups,
        "topk_group": kept,
        "num_experts_per_tok": chosen,
    }
    if possible:
        assert DeepSeekConfig.from_dict(DeepSeekConfig(**settings).to_dict()) == DeepSeekConfig(**settings)
    else:
        assert refused(**settings)
