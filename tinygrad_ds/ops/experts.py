"""The two products of a mixture of experts, each with what stands beside it, so that little need be saved.

    offsets, position = expert_order(indices, num_experts=E)
    gate_up = experts_in(x, w_in, position, offsets)                 (M, 2 I)  rows sorted by expert
    y = experts_out(gate_up, weights, w_out, position, offsets)      (N, d)

This is dispatch, grouped_linear, swiglu, grouped_linear and combine (ops/moe.py) in two steps. The copies of
the tokens, the hidden layer and the rows that the experts give back are made again in backward, or never
whole: of N tokens with K experts each only the M = N K rows of gate_up are kept. DeepSeek-V3 (section 3.2.3)
recomputes its SwiGLU for the same reason. Reference forms; the fused twins are in kernels/cpu/experts.py.
"""

from types import ModuleType
from typing import NamedTuple

from tinygrad_ds.device import Array, namespace, to_host
from tinygrad_ds.inference import inference
from tinygrad_ds.ops.activation import logistic
from tinygrad_ds.ops.broadcast import fit
from tinygrad_ds.ops.moe import check_bounds, runs
from tinygrad_ds.primitive import primitive


@inference
def count_numbers(values: Array, *, bins: int) -> Array:
    """(bins,): how often each whole number from 0 to bins - 1 stands in `values`, which hold no other."""
    return namespace(values).bincount(values.reshape(-1), minlength=bins)


@inference
def expert_order(indices: Array, *, num_experts: int) -> tuple[Array, Array]:
    """Where every choice goes when rows are sorted by expert and, within an expert, by token.

    indices (N, K) -> offsets (num_experts + 1,): expert e has the rows offsets[e] to offsets[e + 1] - 1; and
    position (N, K): the row of token n's k-th choice. Raises ValueError for an index that is no expert's.
    """
    xp = namespace(indices)
    flat = indices.reshape(-1)
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < num_experts:
        raise ValueError(
            f"indices reach from {int(flat.min())} to {int(flat.max())}, "
            f"but experts are numbered 0 to {num_experts - 1}"
        )
    order = xp.argsort(flat.astype(xp.int16) if num_experts < 2**15 else flat, kind="stable")  # int16: radix
    position = xp.empty_like(order)
    position[order] = xp.arange(flat.size)
    offsets = xp.zeros(num_experts + 1, dtype=xp.int64)
    offsets[1:] = xp.cumsum(count_numbers(flat, bins=num_experts))
    return offsets, position.reshape(indices.shape)


class ExpertsInSaved(NamedTuple):
    """What both halves of the backward read: the tokens themselves, not their copies."""

    x: Array  # (N, d)
    weight: Array  # (E, out, d)
    position: Array  # (N, K)
    bounds: list[int]


@primitive(weights=(1,))
def experts_in(x, weight, position, offsets):
    """y_r = W_e x_n for row r = position[n, k], which is a row of expert e.

    x (N, d), weight (E, out, d), position (N, K), offsets (E + 1,) as `expert_order` gives them
    -> y (N K, out).  Raises ValueError for offsets that do not cover the rows.
    """
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, position.size, len(weight))
    xp = namespace(x)
    rows = x[token_of_row(xp, position)]  # (M, d)
    y = xp.empty((len(rows), weight.shape[1]), dtype=x.dtype)
    for e, start, stop in runs(bounds):
        y[start:stop] = rows[start:stop] @ weight[e].T
    return y, ExpertsInSaved(x, weight, position, bounds)


@experts_in.backward_input
def experts_in_backward_input(saved, g):
    """From g = dL/dy to dL/dx.

    A row's copy of its token gets g_r W_e, expert by expert, and the token the sum over its K copies:
        dL/dx_n = sum_k (g W_e)_{position[n, k]}
    """
    x, weight, position, bounds = saved
    grad_rows = namespace(x).empty((position.size, x.shape[1]), dtype=x.dtype)
    for e, start, stop in runs(bounds):
        grad_rows[start:stop] = g[start:stop] @ weight[e]
    return grad_rows[position].sum(axis=1), None, None, None


@experts_in.backward_weight
def experts_in_backward_weight(saved, g):
    """From g = dL/dy to dL/dweight: W_e reaches the loss through all rows of its expert, dL/dW_e = g^T x."""
    x, weight, position, bounds = saved
    xp = namespace(x)
    rows = x[token_of_row(xp, position)]
    grad_weight = xp.zeros_like(weight)
    for e, start, stop in runs(bounds):
        grad_weight[e] = g[start:stop].T @ rows[start:stop]
    return None, grad_weight, None, None


class ExpertsOutSaved(NamedTuple):
    """What both halves of the backward read. The hidden layer is computed again from gate_up."""

    gate_up: Array  # (M, 2 I)
    weights: Array  # (N, K)
    weight: Array  # (E, d, I)
    position: Array  # (N, K)
    bounds: list[int]


@primitive(weights=(2,))
def experts_out(gate_up, weights, weight, position, offsets):
    """y_n = sum_k w[n, k] W_e h_r with r = position[n, k] and h = silu(gate) up.

    gate_up (M, 2 I) = [gate | up], weights (N, K), weight (E, d, I), position (N, K), offsets (E + 1,)
    -> y (N, d).  Raises ValueError for shapes that do not fit and for offsets that do not cover the rows.
    """
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, len(gate_up), len(weight))
    if weights.shape != position.shape or position.size != len(gate_up):
        raise ValueError(
            f"weights has shape {weights.shape} and position {position.shape}: both are (N, K), "
            f"a row of gate_up each, of which there are {len(gate_up)}"
        )
    xp = namespace(gate_up)
    gate, up = xp.split(gate_up, 2, axis=-1)
    h = gate * logistic(gate) * up  # (M, I)
    rows = xp.empty((len(h), weight.shape[1]), dtype=h.dtype)
    for e, start, stop in runs(bounds):
        rows[start:stop] = h[start:stop] @ weight[e].T
    y = (weights[:, :, None] * rows[position]).sum(axis=1)
    return y, ExpertsOutSaved(gate_up, weights, weight, position, bounds)


@experts_out.backward_input
def experts_out_backward_input(saved, g):
    """From g = dL/dy to dL/dgate_up and dL/dweights. For row r = position[n, k] of expert e, w = w[n, k]:

    y_n contains w W_e h_r, so with u_r = W_e^T g_n (one product for every expert, as the forward has one):
        dL/dw[n, k] = g_n . W_e h_r = u_r . h_r             the weight's gradient needs no second product
        dL/dh_r     = w u_r
    h = gate sigma(gate) up, a product, each factor with the others as its slope:
        dL/dup_r    = dL/dh_r gate sigma(gate)
        dL/dgate_r  = dL/dh_r up sigma(gate) (1 + gate (1 - sigma(gate)))
    """
    gate_up, weights, weight, position, bounds = saved
    xp = namespace(g)
    g_rows = g[token_of_row(xp, position)]  # (M, d)
    u = xp.empty((len(gate_up), weight.shape[2]), dtype=g.dtype)
    for e, start, stop in runs(bounds):
        u[start:stop] = g_rows[start:stop] @ weight[e]
    gate, up = xp.split(gate_up, 2, axis=-1)
    sigma = logistic(gate)
    grad_weights = (u * gate * sigma * up).sum(axis=-1)[position]
    grad_h = weight_of_row(xp, weights, position)[:, None] * u
    grad_gate = grad_h * up * sigma * (1 + gate * (1 - sigma))
    grad_gate_up = xp.concatenate([grad_gate, grad_h * gate * sigma], axis=-1)
    return fit(grad_gate_up, gate_up), fit(grad_weights, weights), None, None, None


@experts_out.backward_weight
def experts_out_backward_weight(saved, g):
    """From g = dL/dy to dL/dweight: W_e reaches the loss as w W_e h_r in y_n for every row of its expert,

    dL/dW_e = sum_r g_n (w h_r)^T.
    """
    gate_up, weights, weight, position, bounds = saved
    xp = namespace(g)
    g_rows = g[token_of_row(xp, position)]
    gate, up = xp.split(gate_up, 2, axis=-1)
    h = weight_of_row(xp, weights, position)[:, None] * gate * logistic(gate) * up
    grad_weight = xp.zeros_like(weight)
    for e, start, stop in runs(bounds):
        grad_weight[e] = g_rows[start:stop].T @ h[start:stop]
    return None, None, grad_weight, None, None


def token_of_row(xp: ModuleType, position: Array) -> Array:
    """(M,): the token whose copy each row is."""
    tokens = xp.empty(position.size, dtype=xp.int64)
    tokens[position] = xp.arange(len(position))[:, None]
    return tokens


def weight_of_row(xp: ModuleType, weights: Array, position: Array) -> Array:
    """(M,): the weight with which each row counts for its token."""
    of_row = xp.empty(position.size, dtype=weights.dtype)
    of_row[position] = weights
    return of_row
