"""Random networks of both families, the same in transformers and here: logits, loss and every gradient."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekConfig, DeepSeekModel, load_pretrained, save_pretrained
from tests.golden.make import ROUTING_MARGIN
from tests.layers.cases import aligned, distance
from tests.oracle.peers import their_model, their_pass

pytestmark = pytest.mark.oracle

EXAMPLES = 40  # of each family; one that fails is not made smaller, which would take minutes
TOLERANCE = 1e-9  # of a tensor's largest entry


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


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v2"])
def test_logits_and_gradients_of_random_networks(family):
    @settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(networks(family), st.booleans(), st.integers(0, 2**32 - 1), st.data())
    def compare(described, respelt, seed, data):
        with tempfile.TemporaryDirectory() as folder:
            compare_one(Path(folder), described, respelt, seed, data)

    compare()


def compare_one(folder: Path, described: dict[str, Any], respelt: bool, seed: int, data) -> None:
    config = DeepSeekConfig.from_dict(described)
    save_pretrained(filled(config, seed), folder)
    theirs = their_model(folder)
    if respelt:  # rope_parameters and dtype, as transformers writes a config
        theirs.config.save_pretrained(folder)
        assert "rope_scaling" not in json.loads((folder / "config.json").read_text())
    ours = load_pretrained(folder, dtype="float64")
    assert ours.config.replace(torch_dtype=None, extra={}) == config

    random = np.random.default_rng(seed)
    ids = random.integers(0, config.vocab_size, (data.draw(st.integers(1, 3)), data.draw(st.integers(2, 12))))
    labels = np.where(random.random(ids.shape) < 0.2, -100, ids)
    labels[0, -1] = ids[0, -1]  # one at least counts
    logits, loss, grads, margin = their_pass(theirs, ids, labels)
    assume(margin >= ROUTING_MARGIN)

    form = data.draw(st.sampled_from(["expanded", "absorbed", None]))
    for block in ours.layers:
        block.self_attn.form = form
    for kernels in ("reference", "fused"):
        ours.zero_grad()
        with tg.using(kernels=kernels):
            assert distance(ours(ids).data, logits) < TOLERANCE
            total = ours.loss(ids, aligned(labels))
            total.backward()
        assert abs(float(total) - loss) < TOLERANCE * abs(loss)
        parameters = dict(ours.named_parameters())
        assert parameters.keys() == grads.keys()
        for name, gradient in grads.items():
            error = distance(parameters[name].grad, gradient)
            note(f"{kernels} {name} {error:.1e}")
            assert error < TOLERANCE, f"{name}, {kernels} kernels: {error:.1e}"
