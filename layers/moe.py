"""Mixture of experts (DeepSeek-V3, section 2.1.2): each token takes K of E small feed-forward parts.

    s_e = sigmoid(w_e . x)          (V2: softmax)         choice_e = s_e + b_e, the K best of the best groups
    g_e = s_e / sum of chosen s     (V3)                  times routed_scaling_factor
    y   = sum_e g_e FFN_e(x) + FFN_shared(x)

b is moved by hand, not by a gradient: an expert that gets less than the mean load becomes easier to choose.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

import tinygrad_ds as tg
from layers.balance import balance_loss
from layers.config import DeepSeekConfig
from layers.mlp import MLP
from layers.module import Module, Part, parameter
from layers.precision import products
from tinygrad_ds import Tensor, settings
from tinygrad_ds.device import Array, here, namespace
from tinygrad_ds.ops.experts import count_numbers, expert_order


class Router(Module):
    """logits (.., E) = W x and the bias b that only the choice sees (`e_score_correction_bias`, V3)."""

    def __init__(self, config: DeepSeekConfig, dtype: np.dtype) -> None:
        experts = config.n_routed_experts
        self.weight = parameter((experts, config.hidden_size), dtype)
        if config.has_correction_bias:
            self.e_score_correction_bias = Tensor(here().zeros(experts, dtype=dtype))
        self.rules = {
            name: getattr(config, name)
            for name in (
                "num_experts_per_tok",
                "n_group",
                "topk_group",
                "scoring_func",
                "topk_method",
                "norm_topk_prob",
                "routed_scaling_factor",
            )
        }

    def __call__(self, x: Tensor, chosen: Array | None = None) -> Any:
        """x (tokens, hidden) -> RouterSelection: weights and indices (tokens, K), scores (tokens, E).

        chosen (tokens, K): experts that are settled already.
        """
        logits = tg.linear(x, self.weight)  # (tokens, E)
        bias = getattr(self, "e_score_correction_bias", None)
        if bias is None:
            bias = namespace(logits.data).zeros(logits.shape[1], dtype=logits.dtype)
        return tg.router_selection(logits, bias, **self.rules, chosen=chosen)


class Experts(Module):
    """E feed-forward parts as two stacks of matrices, so that each stack is one grouped product."""

    def __init__(self, config: DeepSeekConfig, dtype: np.dtype) -> None:
        self.count, self.width = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = parameter((self.count, 2 * self.width, config.hidden_size), dtype)
        self.down_proj = parameter((self.count, config.hidden_size, self.width), dtype)

    def __call__(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """sum_k weights[n, k] FFN_{indices[n, k]}(x[n]).  x (tokens, hidden), the others (tokens, K)."""
        offsets, position = expert_order(indices.data, num_experts=self.count)
        multiply = products()
        gate_up = multiply.experts_in(x, self.gate_up_proj, position, offsets)  # (tokens K, 2 width)
        return multiply.experts_out(gate_up, weights, self.down_proj, position, offsets)

    def published(self, path: str = "") -> Iterator[Part]:
        """Three matrices for every expert, one by one."""
        gate, up = slice(self.width), slice(self.width, 2 * self.width)
        for e in range(self.count):
            yield Part(f"{path}{e}.gate_proj.weight", self.gate_up_proj, (e, gate))
            yield Part(f"{path}{e}.up_proj.weight", self.gate_up_proj, (e, up))
            yield Part(f"{path}{e}.down_proj.weight", self.down_proj, e)


class MoE(Module):
    """x (batch, time, hidden) -> y, balance: the experts' sum, and the balance loss (0-d), 0 if not wanted.

    `load` (E,) counts the tokens that each expert got in recorded passes since `update_router_bias`; `chosen`
    (batch, time, K) and `weights` are the choices of the last pass. Where `replay` (batch, time, K) is set,
    the pass takes these experts and chooses none.
    """

    def __init__(self, config: DeepSeekConfig, dtype: np.dtype) -> None:
        self.gate = Router(config, dtype)
        self.experts = Experts(config, dtype)
        if config.n_shared_experts:
            width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = MLP(config.hidden_size, width, dtype)
        self.n_group, self.counts_choices = config.n_group, config.balance_counts == "choices"
        self.load = here().zeros(config.n_routed_experts, dtype=np.int64)
        self.chosen: Array = None
        self.weights: Array = None
        self.replay: Array | None = None

    def __call__(self, x: Tensor, balance: bool = False) -> tuple[Tensor, Tensor]:
        batch, time, hidden = x.shape
        flat = x.reshape(batch * time, hidden)
        settled = None if self.replay is None else self.replay.reshape(batch * time, -1)
        weights, indices, scores = self.gate(flat, settled)
        self.chosen = indices.data.reshape(batch, time, indices.shape[1])
        self.weights = weights.data.reshape(self.chosen.shape)
        if settings.current().recording:
            self.load += count_numbers(indices.data, bins=len(self.load))
        y = self.experts(flat, weights, indices)
        if hasattr(self, "shared_experts"):
            y = y + self.shared_experts(flat)
        if balance:
            counted = self.chosen if self.counts_choices else None
            loss = balance_loss(scores.reshape(batch, time, scores.shape[1]), indices.shape[1], counted)
        else:
            loss = Tensor(here().zeros((), dtype=x.dtype))
        return y.reshape(x.shape), loss

    def update_router_bias(self, gamma: float) -> None:
        """b_e += gamma sign(mean load - load_e), and count anew (DeepSeek-V3, section 2.1.2; V2 has no b)."""
        if hasattr(self.gate, "e_score_correction_bias"):
            bias, load = self.gate.e_score_correction_bias, self.load
            bias += gamma * namespace(load).sign(load.mean() - load).astype(bias.dtype)
        self.load[...] = 0

    def groups_reached(self) -> np.ndarray:
        """(batch, time): to how many groups of experts, that is nodes, each token of the last pass goes."""
        group = self.chosen // (len(self.load) // self.n_group)  # (batch, time, K)
        return (group[..., None] == namespace(group).arange(self.n_group)).any(axis=-2).sum(axis=-1)
