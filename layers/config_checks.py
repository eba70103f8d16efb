"""What a configuration must satisfy. A broken rule gives one sentence: the value, the limit, the remedy."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layers.config import DeepSeekConfig

FAMILIES = ("deepseek_v3", "deepseek_v2")
ATTENTIONS = ("mla", "mha", "gqa", "mqa")
BALANCE_COUNTS = ("scores", "choices")
ROUTING = {  # family -> scoring_func and the ways to choose that go with it
    "deepseek_v3": ("sigmoid", ("noaux_tc",)),
    "deepseek_v2": ("softmax", ("greedy", "group_limited_greedy")),
}
AT_LEAST_ONE = (
    "vocab_size hidden_size num_hidden_layers max_position_embeddings num_attention_heads "
    "num_key_value_heads kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim intermediate_size "
    "moe_intermediate_size n_routed_experts num_experts_per_tok n_group topk_group"
).split()
NOT_NEGATIVE = ("first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers")
ABOVE_ZERO = ("rope_theta", "rms_norm_eps", "routed_scaling_factor")
SWITCHES = ("attention_bias", "rope_interleave", "norm_topk_prob", "tie_word_embeddings")


def problems(config: "DeepSeekConfig") -> list[str]:
    """Every broken rule, as sentences. How values fit together matters once each by itself is possible."""
    return list(impossible_values(config)) or [*impossible_attention(config), *impossible_experts(config)]


def is_number(value: Any, kind: type[float] | tuple[type[float], ...] = (int, float)) -> bool:
    """Is it a finite number of that kind? True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def impossible_values(config: Any) -> Iterator[str]:
    """Fields that are wrong whatever the others say; until here each may be anything."""
    if config.model_type not in FAMILIES:
        yield f"model_type is {config.model_type!r} but only {' and '.join(FAMILIES)} are known here"
    if config.attention_kind not in ATTENTIONS:
        yield f"attention_kind is {config.attention_kind!r}: choose one of {', '.join(ATTENTIONS)}"
    if config.balance_counts not in BALANCE_COUNTS:
        yield f"balance_counts is {config.balance_counts!r}: choose {' or '.join(BALANCE_COUNTS)}"
    lowest = dict.fromkeys(AT_LEAST_ONE, 1) | dict.fromkeys(NOT_NEGATIVE, 0)
    if config.q_lora_rank is not None:
        lowest["q_lora_rank"] = 1
    for name, limit in lowest.items():
        value = getattr(config, name)
        if not is_number(value, int) or value < limit:
            yield f"{name} is {value!r} but must be a whole number of at least {limit}"
    for name in ABOVE_ZERO:
        value = getattr(config, name)
        if not is_number(value) or value <= 0:
            yield f"{name} is {value!r} but must be a number above 0"
    if not is_number(config.initializer_range) or config.initializer_range < 0:
        yield f"initializer_range is {config.initializer_range!r} but must be a number of at least 0"
    for name in SWITCHES:
        if not isinstance(getattr(config, name), bool):
            yield f"{name} is {getattr(config, name)!r} but must be true or false"
    if config.hidden_act != "silu":
        yield f"hidden_act is {config.hidden_act!r} but feed-forward parts here are SwiGLU: set it to 'silu'"
    if (every := config.moe_layer_freq) != 1:
        yield f"moe_layer_freq is {every!r} but all layers after the dense have experts here: set it to 1"
    if dropout := config.extra.get("attention_dropout"):
        yield f"attention_dropout is {dropout!r} but nothing is dropped here: set it to 0"
    if not isinstance(config.quantization_config, dict | None):
        yield f"quantization_config is {config.quantization_config!r} but must be an object, or absent"
    yield from impossible_rope_scaling(config)


def impossible_rope_scaling(config: "DeepSeekConfig") -> Iterator[str]:
    """YaRN's settings, one by one and together."""
    rope = config.rope_scaling
    if rope is None:
        return
    if not hasattr(rope, "beta_fast"):
        yield f"rope_scaling is {rope!r} but must be an object like {{'type': 'yarn', 'factor': 40}}, or null"
        return
    limits = {"factor": 1, "original_max_position_embeddings": 1, "mscale": 0, "mscale_all_dim": 0}
    for name, limit in limits.items():
        if not is_number(getattr(rope, name)) or getattr(rope, name) < limit:
            yield f"rope_scaling has {name} {getattr(rope, name)!r} but needs a number of at least {limit}"
            return
    for name in ("beta_slow", "beta_fast"):
        if not is_number(getattr(rope, name)) or getattr(rope, name) <= 0:
            yield f"rope_scaling has {name} {getattr(rope, name)!r} but must be above 0, such as 1 or 32"
            return
    if rope.beta_slow >= rope.beta_fast:
        yield f"rope_scaling has beta_slow {rope.beta_slow} but it must be below beta_fast, {rope.beta_fast}"
    if is_number(config.rope_theta) and config.rope_theta <= 1:
        yield f"rope_theta is {config.rope_theta} but must be above 1 with rope_scaling: pairs differ"


def impossible_attention(config: "DeepSeekConfig") -> Iterator[str]:
    """Heads and rotary dimensions."""
    if config.qk_rope_head_dim % 2:
        yield (
            f"qk_rope_head_dim is {config.qk_rope_head_dim} but rotary embedding turns pairs: "
            f"take an even number, such as {config.qk_rope_head_dim + 1}"
        )
    kind, heads, kv_heads = config.attention_kind, config.num_attention_heads, config.num_key_value_heads
    if kind in ("mla", "mha") and kv_heads != heads:
        yield (
            f"num_key_value_heads is {kv_heads} but in {kind.upper()} each of the {heads} heads has keys "
            f"of its own: set it to {heads} or leave it out"
        )
    if kind == "mqa" and kv_heads != 1:
        yield f"num_key_value_heads is {kv_heads} but in MQA all heads share one: set it to 1 or leave it out"
    if kind == "gqa" and heads % kv_heads:
        yield f"num_key_value_heads is {kv_heads} but must divide the {heads} heads into equal groups"
    dense, layers = config.first_k_dense_replace, config.num_hidden_layers
    if dense > layers:
        yield (
            f"first_k_dense_replace is {dense} but there are only {layers} layers: at most {layers}, "
            "which makes all of them dense"
        )


def impossible_experts(config: "DeepSeekConfig") -> Iterator[str]:
    """Routing: which choices fit the family, and whether enough experts are left to choose from."""
    family = config.model_type
    scoring, methods = ROUTING[family]
    if config.scoring_func != scoring:
        yield f"scoring_func is {config.scoring_func!r} but {family} scores by {scoring!r}: set it to that"
    if config.topk_method not in methods:
        known = " or ".join(map(repr, methods))
        yield f"topk_method is {config.topk_method!r} but {family} chooses by {known}: set it to that"
        return
    if family == "deepseek_v2" and config.norm_topk_prob:
        yield "norm_topk_prob is true but no published V2 model normalises its weights: set it to false"
    if config.first_k_dense_replace >= config.num_hidden_layers and not config.num_nextn_predict_layers:
        return  # no layer has experts
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    if config.topk_method == "greedy":
        if chosen > experts:
            yield f"num_experts_per_tok is {chosen} but there are only {experts} experts: at most {experts}"
        return
    groups, kept = config.n_group, config.topk_group
    if experts % groups:
        yield f"n_group is {groups} but must divide the {experts} routed experts into equal groups"
        return
    size = experts // groups
    if config.has_correction_bias and size < 2:
        yield (
            f"n_group is {groups} for {experts} experts, {size} in each, but a group is judged by its 2 best "
            f"experts: at most {experts // 2} groups, or more experts"
        )
    if kept > groups:
        yield f"topk_group is {kept} but there are only {groups} groups: at most {groups}"
    elif chosen > kept * size:
        yield (
            f"num_experts_per_tok is {chosen} but only {kept} of {groups} groups of {size} experts stay: "
            f"at most {kept * size}"
        )
