"""A network of a few thousand numbers that has every kind of part, and batches for it."""

import numpy as np

from layers import DeepSeekConfig, DeepSeekModel

CONFIG = DeepSeekConfig(
    vocab_size=37,
    hidden_size=16,
    num_hidden_layers=2,
    max_position_embeddings=16,
    num_attention_heads=2,
    q_lora_rank=6,
    kv_lora_rank=8,
    qk_nope_head_dim=4,
    qk_rope_head_dim=4,
    v_head_dim=6,
    first_k_dense_replace=1,
    intermediate_size=20,
    moe_intermediate_size=10,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    num_nextn_predict_layers=1,
)


def tiny_model(dtype: str = "float64", seed: int = 0) -> DeepSeekModel:
    """The network, its matrices larger than usual so that no gradient is lost in rounding."""
    return DeepSeekModel(CONFIG.replace(initializer_range=0.2), seed=seed, dtype=dtype)


def tiny_rows(rows: int, time: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ids and targets (rows, time); a third of the targets is ignored, unevenly over the rows."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, CONFIG.vocab_size, (2, rows, time))
    targets[rng.random(targets.shape) < np.linspace(0.1, 0.6, rows)[:, None]] = -100
    return ids, targets


def with_gradient(model: DeepSeekModel, seed: int = 0) -> DeepSeekModel:
    """The model, the gradient of a loss in its leaves."""
    model.zero_grad()
    model.loss(*tiny_rows(3, seed=seed), mtp_weight=0.3, balance_weight=0.1).backward()
    return model
