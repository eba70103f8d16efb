"""Softmax attention with grouped heads. Reference form; the fused twin is in kernels/cpu/attention.py."""

from types import ModuleType
from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.broadcast import fit
from tinygrad_ds.primitive import primitive


class AttentionSaved(NamedTuple):
    """What the backward reads. P is the largest part: the fused twin computes it again instead."""

    q: Array  # (batch, heads, time_q, d)
    k: Array  # (batch, kv_heads, time_k, d)
    v: Array  # (batch, kv_heads, time_k, d_v)
    p: Array  # (batch, kv_heads, group, time_q, time_k)
    scale: float


@primitive
def attention(q, k, v, *, causal=True, scale=None, first=None):
    """Every query takes the average of the values that it sees, weighted by how well their keys match it.

        S_ij = scale q_i . k_j
        P_ij = exp(S_ij) / sum_m exp(S_im), over the visible keys m; 0 where key j is hidden from query i
        y_i  = sum_j P_ij v_j

    q (batch, heads, time_q, d), k (batch, kv_heads, time_k, d), v (batch, kv_heads, time_k, d_v)
    -> y (batch, heads, time_q, d_v).  Vaswani et al. 2017; grouped heads: Ainslie et al. 2023.

    Query head h reads kv head h // (heads // kv_heads). With `causal`, query i sees the keys
    j <= i + time_k - time_q: the last query is the newest token and sees them all. `first` (batch, time_q),
    integers: the lowest key that a query sees, for padding on the left and for sequences packed behind each
    other. A query that sees no key gives 0. `scale` is d^(-1/2) if not given.

    Raises ValueError for shapes that do not fit together.
    """
    xp = namespace(q)
    check_shapes(q, k, v, first)
    batch, heads, time_q, d = q.shape
    kv_heads, time_k = k.shape[1:3]
    scale = d**-0.5 if scale is None else float(scale)

    q_grouped = q.reshape(batch, kv_heads, heads // kv_heads, time_q, d)
    s = scale * (q_grouped @ k[:, :, None].swapaxes(-1, -2))  # (batch, kv_heads, group, time_q, time_k)
    s = xp.where(visible(xp, time_q, time_k, causal, first), s, -xp.inf)
    largest = s.max(axis=-1, keepdims=True) if time_k else xp.zeros_like(s, shape=(*s.shape[:-1], 1))
    largest = xp.where(largest == -xp.inf, xp.zeros_like(largest), largest)  # a row that is hidden whole
    p = xp.exp(s - largest)
    total = p.sum(axis=-1, keepdims=True)
    p /= xp.where(total == 0, xp.ones_like(total), total)
    y = (p @ v[:, :, None]).reshape(batch, heads, time_q, v.shape[-1])
    return y.astype(q.dtype, copy=False), AttentionSaved(q, k, v, p, scale)


@attention.backward
def attention_backward(saved, g):
    """From g = dL/dy to dL/dq, dL/dk and dL/dv. First one head alone.

    y_i = sum_j P_ij v_j is linear in P and in v:
        dL/dv_j  = sum_i P_ij g_i                           P^T g
        dL/dP_ij = g_i . v_j, from here on dP_ij            g v^T

    P_i is a softmax. With Z_i the sum of the exponentials of row i, P_ij = exp(S_ij) / Z_i gives
        dP_ij/dS_im = P_ij [j = m] - P_ij P_im,
    for S_im stands in the numerator if j = m, and in Z_i always. Hence
        dL/dS_im = sum_j dP_ij (P_ij [j = m] - P_ij P_im)
                 = P_im (dP_im - sum_j dP_ij P_ij)          dS = P * (dP - rowsum(dP * P))
    Each row of dS sums to zero: adding a constant to a row of S changes nothing. A hidden key has P = 0, so
    dS = 0 and no gradient passes; where a query sees no key at all, every P is 0 and so is every gradient.

    S_ij = scale q_i . k_j:
        dL/dq_i = scale sum_j dS_ij k_j                     dS k
        dL/dk_j = scale sum_i dS_ij q_i                     dS^T q

    Grouped heads: every head of a group reads the same k and v, which reach the loss once through each of
    them, so their gradients are summed over the group. Each q belongs to one head: nothing to sum.
    """
    q, k, v, p, scale = saved
    batch, kv_heads, group, time_q, _ = p.shape
    q_grouped = q.reshape(batch, kv_heads, group, time_q, q.shape[-1])
    g_grouped = g.reshape(batch, kv_heads, group, time_q, v.shape[-1])

    grad_v = (p.swapaxes(-1, -2) @ g_grouped).sum(axis=2)
    dp = g_grouped @ v[:, :, None].swapaxes(-1, -2)  # (batch, kv_heads, group, time_q, time_k)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
    grad_q = scale * (ds @ k[:, :, None])
    grad_k = scale * (ds.swapaxes(-1, -2) @ q_grouped).sum(axis=2)
    return fit(grad_q.reshape(q.shape), q), fit(grad_k, k), fit(grad_v, v)


def visible(xp: ModuleType, time_q: int, time_k: int, causal: bool, first: Array | None) -> Array:
    """Which keys each query sees: booleans (batch or 1, 1, 1, time_q, time_k)."""
    i = xp.arange(time_q)[:, None]
    j = xp.arange(time_k)
    sees = (j <= i + (time_k - time_q) if causal else xp.ones((time_q, time_k), dtype=bool))[None]
    if first is not None:
        sees = sees & (j >= xp.asarray(first)[:, :, None])  # (batch, time_q, time_k)
    return sees[:, None, None]


def check_shapes(q: Array, k: Array, v: Array, first: Array | None) -> None:
    """Raise ValueError unless these are the queries, keys and values of one attention."""
    shapes = f"q has shape {q.shape}, k {k.shape} and v {v.shape}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"{shapes}, but attention takes (batch, heads, time, size)")
    batch, heads, time_q, d = q.shape
    kv_heads = k.shape[1]
    if k.shape[0] != batch or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"{shapes}: all need the same batch, and k and v the same heads and time")
    if d == 0:
        raise ValueError(f"{shapes}: a head needs at least one number to match by")
    if k.shape[3] != d:
        raise ValueError(f"{shapes}: q and k need the same size of a head, not {d} and {k.shape[3]}")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q has {heads} heads and k has {kv_heads}: heads must be a multiple of kv_heads")
    if first is not None and tuple(first.shape) != (batch, time_q):
        raise ValueError(
            f"first has shape {tuple(first.shape)} but needs an entry per query: {batch, time_q}"
        )
