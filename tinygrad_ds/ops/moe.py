"""Mixture of experts: rows go to the experts that a router chose (ops/routing.py) and come back as one sum.

    chosen = router_selection(logits, bias, ...)
    sent = dispatch(x, chosen.indices, num_experts=E)              rows sorted by expert: no padding, no drop
    rows = grouped_linear(sent.rows, weight, sent.offsets)         each expert's rows times its own matrix
    y = combine(rows, chosen.weights, sent.position)               the weighted sum for every token

N tokens with K experts each make M = N K rows. Reference forms; the fused twins are in kernels/cpu/moe.py.
"""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace, to_host
from tinygrad_ds.ops.broadcast import fit
from tinygrad_ds.primitive import primitive


class Dispatched(NamedTuple):
    """Rows sorted by expert."""

    rows: Array  # (M, d)
    offsets: Array  # (E + 1,)  expert e has the rows offsets[e] to offsets[e + 1] - 1
    position: Array  # (N, K)  the row of token n's k-th choice


class DispatchSaved(NamedTuple):
    """What the backward reads: where each token's copies went."""

    position: Array  # (N, K)


@primitive
def dispatch(x, indices, *, num_experts):
    """A copy of a token's row for each of its experts, sorted by expert and, within an expert, by token.

    x (N, d), indices (N, K) -> Dispatched(rows (N K, d), offsets (num_experts + 1,), position (N, K)).
    Raises ValueError for an index that is no expert's, and where x and indices differ in N.
    """
    xp = namespace(x)
    n, k = indices.shape
    if len(x) != n:
        raise ValueError(f"x has {len(x)} rows but indices {n}: every row needs its experts")
    flat = indices.reshape(-1)
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < num_experts:
        raise ValueError(
            f"indices reach from {int(flat.min())} to {int(flat.max())}, "
            f"but experts are numbered 0 to {num_experts - 1}"
        )
    order = xp.argsort(flat, kind="stable")  # (N K,)  row r is a copy for choice order[r]
    position = xp.empty_like(order)
    position[order] = xp.arange(n * k)
    offsets = xp.searchsorted(flat[order], xp.arange(num_experts + 1, dtype=flat.dtype))
    position = position.reshape(n, k)
    return Dispatched(x[order // max(k, 1)], offsets, position), DispatchSaved(position)


@dispatch.backward
def dispatch_backward(saved, g):
    """From g = dL/drows to dL/dx.

    rows[position[n, k]] = x[n] for every k. So x[n] reaches the loss through K copies, and
        dL/dx[n] = sum_k g[position[n, k]].
    """
    g_rows = g[0]
    return g_rows[saved.position].sum(axis=1), None


class GroupedLinearSaved(NamedTuple):
    """What the two halves of the backward read."""

    rows: Array  # (M, in)
    weight: Array  # (E, out, in)
    bounds: list[int]  # the offsets, on the host


@primitive(weights=(1,))
def grouped_linear(rows, weight, offsets):
    """y_r = W_e x_r for every row r of expert e.

    rows (M, in), weight (E, out, in), offsets (E + 1,) rising from 0 to M -> y (M, out). One product for each
    expert that has rows.  Raises ValueError for offsets that do not cover the rows.
    """
    xp = namespace(rows)
    bounds = to_host(offsets).tolist()
    check_bounds(bounds, len(rows), len(weight))
    y = xp.empty((len(rows), weight.shape[1]), dtype=xp.result_type(rows, weight))
    for e, start, stop in runs(bounds):
        y[start:stop] = rows[start:stop] @ weight[e].T
    return y, GroupedLinearSaved(rows, weight, bounds)


@grouped_linear.backward_input
def grouped_linear_backward_input(saved, g):
    """From g = dL/dy to dL/drows.

    y_ro = sum_i W_oi x_ri with the W of the row's own expert, so
        dL/dx_ri = sum_o g_ro W_oi                          g W, expert by expert
    """
    rows, weight, bounds = saved
    grad_rows = namespace(rows).empty_like(rows)
    for e, start, stop in runs(bounds):
        grad_rows[start:stop] = g[start:stop] @ weight[e]
    return grad_rows, None, None


@grouped_linear.backward_weight
def grouped_linear_backward_weight(saved, g):
    """From g = dL/dy to dL/dweight.

    W_oi reaches the loss through every row of its expert:
        dL/dW_oi = sum_r g_ro x_ri                          g^T x, expert by expert
    An expert without rows has no part in the loss, and its gradient is zero.
    """
    rows, weight, bounds = saved
    grad_weight = namespace(rows).zeros_like(weight)
    for e, start, stop in runs(bounds):
        grad_weight[e] = g[start:stop].T @ rows[start:stop]
    return None, grad_weight, None


def runs(bounds: list[int]) -> list[tuple[int, int, int]]:
    """(expert, its first row, the row behind its last) for every expert that has rows."""
    return [(e, start, stop) for e, (start, stop) in enumerate(zip(bounds, bounds[1:])) if start < stop]


def check_bounds(bounds: list[int], rows: int, experts: int) -> None:
    """Raise ValueError unless the bounds cut all rows into one run for each expert."""
    if len(bounds) != experts + 1:
        raise ValueError(f"offsets has {len(bounds)} entries but {experts} experts need {experts + 1}")
    if bounds[0] != 0 or bounds[-1] != rows or bounds != sorted(bounds):
        raise ValueError(f"offsets are {bounds} but must rise from 0 to the number of rows, {rows}")


class CombineSaved(NamedTuple):
    """What the backward reads."""

    rows: Array  # (M, d)
    weights: Array  # (N, K)
    position: Array  # (N, K)


@primitive
def combine(rows, weights, position):
    """The weighted sum of the rows that a token's experts made: y[n] = sum_k w[n, k] rows[position[n, k]].

    rows (M, d), weights (N, K), position (N, K) -> y (N, d). Each row is read at most once.
    Raises ValueError where weights and position differ in shape.
    """
    if weights.shape != position.shape:
        raise ValueError(f"weights has shape {weights.shape} and position {position.shape}: both are (N, K)")
    y = (weights[:, :, None] * rows[position]).sum(axis=1)
    return y, CombineSaved(rows, weights, position)


@combine.backward
def combine_backward(saved, g):
    """From g = dL/dy to dL/drows and dL/dweights. With r = position[n, k]:

        dL/drows[r] = w[n, k] g[n]                          read once, so there is nothing to sum
        dL/dw[n, k] = g[n] . rows[r]
    A row that nobody reads has gradient 0.
    """
    rows, weights, position = saved
    grad_rows = namespace(rows).zeros_like(rows)
    grad_rows[position] = weights[:, :, None] * g[:, None, :]
    grad_weights = (g[:, None, :] * rows[position]).sum(axis=-1)
    return grad_rows, fit(grad_weights, weights), None
