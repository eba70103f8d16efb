"""Cases for ops/experts.py: tokens with different experts each, some experts without rows."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, composition, reals, strategy
from tinygrad_ds.ops.experts import expert_order


@st.composite
def sent(draw):
    """(N, K, E, offsets, position) of a random routing."""
    experts, tokens = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    chosen = draw(st.integers(1, experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    picks = [np.sort(rng.permutation(experts)[:chosen]) for _ in range(tokens)]
    indices = np.array(picks, dtype=np.int64).reshape(tokens, chosen)
    return tokens, chosen, experts, *expert_order(indices, num_experts=experts)


@strategy("experts_in")
@st.composite
def experts_in_cases(draw):
    tokens, _, experts, offsets, position = draw(sent())
    d, out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Case((draw(reals((tokens, d))), draw(reals((experts, out, d))), position, offsets))


@strategy("experts_out")
@st.composite
def experts_out_cases(draw):
    tokens, chosen, experts, offsets, position = draw(sent())
    d, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gate_up, weights = draw(reals((tokens * chosen, 2 * width))), draw(reals((tokens, chosen)))
    return Case((gate_up, weights, draw(reals((experts, d, width))), position, offsets))


@composition("experts_in")
def experts_in_composed(x, weight, position, offsets):
    tokens = np.empty(position.size, dtype=np.int64)
    tokens[position.data] = np.arange(len(position.data))[:, None]
    return tg.grouped_linear(x[tokens], weight, offsets)


@composition("experts_out")
def experts_out_composed(gate_up, weights, weight, position, offsets):
    gate, up = tg.split(gate_up, sections=2, axis=-1)
    return tg.combine(tg.grouped_linear(tg.swiglu(gate, up), weight, offsets), weights, position)
