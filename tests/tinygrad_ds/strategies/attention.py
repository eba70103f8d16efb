"""Cases for ops/attention.py."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, composition, reals, strategy


@strategy("attention")
@st.composite
def attention_cases(draw):
    batch, kv_heads, group = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    time_q, time_k = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    d, d_v = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    q = draw(reals((batch, kv_heads * group, time_q, d)))
    k = draw(reals((batch, kv_heads, time_k, d)))
    v = draw(reals((batch, kv_heads, time_k, d_v)))
    options = {"causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.0, 0.7, -1.5]))}
    if draw(st.booleans()):  # from 0, where it hides nothing, to time_k, where it hides all
        seed = draw(st.integers(0, 2**32 - 1))
        options["first"] = np.random.default_rng(seed).integers(0, time_k + 1, (batch, time_q))
    return Case((q, k, v), options)


def sees(batch, time_q, time_k, causal, first):
    """Which keys each query sees, one by one: (batch, 1, time_q, time_k)."""
    mask = np.zeros((batch, 1, time_q, time_k), dtype=bool)
    for b, i, j in np.ndindex(batch, time_q, time_k):
        too_new = causal and j > i + time_k - time_q
        too_old = first is not None and j < first[b, i]
        mask[b, 0, i, j] = not (too_new or too_old)
    return mask


@composition("attention")
def attention_composed(q, k, v, *, causal=True, scale=None, first=None):
    heads = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
    k, v = k[:, heads], v[:, heads]
    if not k.shape[2]:  # no key at all: a sum of nothing
        return q @ k.swapaxes(-1, -2) @ v
    s = (q @ k.swapaxes(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    mask = sees(q.shape[0], q.shape[2], k.shape[2], causal, first)
    p = tg.softmax(tg.where(mask, s, -1e30), axis=-1)
    return tg.where(mask, p, 0.0) @ v  # where all keys are hidden, softmax is uniform and must not count
