"""What the tests of the network share: small configs, golden checkpoints, how far arrays are apart."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from layers import DeepSeekConfig, DeepSeekModel

GOLDEN = Path(__file__).parent.parent / "golden"
# Every checkpoint with its gradients, then those without.
CASES = "v3_tiny v3_no_q_lora v3_rope_halves v3_yarn v2_lite v2_group_limited v3_mtp".split()
FORWARD_ONLY = ["v3_sharded", "v3_fp8"]

TINY = {
    "vocab_size": 13,
    "hidden_size": 10,
    "intermediate_size": 12,
    "moe_intermediate_size": 5,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "q_lora_rank": 6,
    "kv_lora_rank": 4,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 3,
    "topk_group": 2,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SOFTMAX = {"model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "group_limited_greedy"}
YARN = {"factor": 4, "original_max_position_embeddings": 16, "type": "yarn", "mscale": 1.0}


def tiny(**changes) -> DeepSeekConfig:
    return DeepSeekConfig.from_dict(TINY | changes)


def model_of(seed: int = 0, dtype: str = "float64", **changes) -> DeepSeekModel:
    """A small model whose router has a bias to add."""
    model = DeepSeekModel(tiny(**changes), seed, dtype)
    for name, bias in model.named_buffers():
        bias.data[...] = np.random.default_rng(len(name)).normal(0, 0.1, bias.shape)
    return model


def some_ids(batch: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TINY["vocab_size"], (batch, time))


@cache
def golden(case: str) -> dict[str, np.ndarray]:
    """The reference numbers of one case, float32 as stored."""
    return load_file(GOLDEN / case / "golden.safetensors")


@cache
def facts_of(case: str) -> dict:
    return json.loads((GOLDEN / case / "golden.json").read_text())


def aligned(labels: np.ndarray) -> np.ndarray:
    """Targets for ids from labels that are not shifted: the last position has none."""
    return np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], -100)], axis=1)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest entry (absolute where all entries are 0)."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max(initial=0) / (np.abs(theirs).max(initial=0) or 1))
