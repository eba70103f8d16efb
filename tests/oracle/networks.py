"""What random networks are drawn from: sizes, switches and routing of both families, and their weights."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from layers import DeepSeekConfig, DeepSeekModel


@st.composite
def yarn(draw) -> dict[str, Any]:
    """Settings as a file may have them: some left out, some 0, `mscale` with and without its counterpart."""
    some = {
        "beta_fast": st.sampled_from([32, 8.5]),
        "beta_slow": st.sampled_from([1, 0.25]),
        "mscale": st.sampled_from([1.0, 0.707, 0.0]),
        "mscale_all_dim": st.sampled_from([1.0, 0.5, 0.0]),
        "attention_factor": st.just(1.25),
    }
    settings = draw(st.fixed_dictionaries({}, optional=some))
    factor, length = draw(st.sampled_from([(1, 64), (4, 16), (40, 16), (2.5, 4096)]))
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": length} | settings


@st.composite
def networks(draw, family: str) -> dict[str, Any]:
    """A config.json: sizes, switches and routing."""
    heads, layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    step = 2 if family == "deepseek_v2" else 1  # there transformers sees pairs as complex numbers in place
    size, groups = draw(st.integers(2, 4)), draw(st.integers(1, 4))  # experts in a group
    kept = draw(st.integers(1, groups))
    config = {
        "model_type": family,
        "vocab_size": draw(st.integers(8, 60)),
        "hidden_size": heads * draw(st.integers(4, 9)),  # transformers wants a multiple
        "intermediate_size": draw(st.integers(4, 40)),
        "moe_intermediate_size": draw(st.integers(2, 12)),
        "num_hidden_layers": layers,
        "first_k_dense_replace": draw(st.integers(0, layers - 1)),
        "max_position_embeddings": 4096,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.none() | st.integers(3, 12)),
        "kv_lora_rank": step * draw(st.integers(2, 6)),
        "qk_nope_head_dim": step * draw(st.integers(1, 5)),
        "qk_rope_head_dim": 2 * draw(st.integers(1, 6)),
        "v_head_dim": draw(st.integers(1, 9)),
        "attention_bias": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([10000.0, 500.0])),
        "rope_scaling": draw(st.none() | yarn()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
        "n_shared_experts": draw(st.integers(1, 2)),
        "n_routed_experts": size * groups,
        "num_nextn_predict_layers": 0,
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
    }
    if family == "deepseek_v3":
        normalised = draw(st.booleans())
        # One weight divided by itself is 1 whatever the router says: its gradient would be rounding alone.
        config |= {
            "rope_interleave": draw(st.booleans()),
            "n_group": groups,
            "topk_group": kept,
            "norm_topk_prob": normalised,
            "num_experts_per_tok": draw(st.integers(2 if normalised else 1, size * kept)),
        }
    elif draw(st.booleans()):
        config |= {
            "topk_method": "group_limited_greedy",
            "n_group": groups,
            "topk_group": kept,
            "num_experts_per_tok": draw(st.integers(1, size * kept)),
        }
    else:
        config |= {"topk_method": "greedy", "num_experts_per_tok": draw(st.integers(1, size * groups))}
    return config


def filled(config: DeepSeekConfig, seed: int) -> DeepSeekModel:
    """Every tensor random: norms around 1, biases and the router's too, matrices large enough to matter."""
    model, random = DeepSeekModel(config, seed=None, dtype="float64"), np.random.default_rng(seed)
    for part in model.published():
        if "norm" in part.name:
            part.data[...] = random.uniform(0.5, 1.6, part.data.shape)
        else:
            part.data[...] = random.normal(0, 0.2 if part.data.ndim == 1 else 0.4, part.data.shape)
    return model
