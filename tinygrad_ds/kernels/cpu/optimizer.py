"""AdamW and the sum of squares, fused, over a leaf's memory as one long vector.

NumPy makes about twelve passes over parameter, gradient and both moments; this is one. Plain functions and
not twins of a primitive: no gradient goes through an optimizer. The sum of squares adds blocks of a fixed
length in the dtype of the array and the blocks' sums in float64, so that it neither drifts nor depends on
threads.
"""

import numpy as np
from numba import prange

from tinygrad_ds.kernels.cpu.common import (
    LIGHT_PARALLEL_FROM,
    PARTS,
    covered,
    kernel,
    share,
    share_of_entries,
)
from tinygrad_ds.kernels.cpu.layout import contiguous

BLOCK = 4096


def adamw_step(
    parameter: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    correction1: float,
    correction2: float,
    scale: float = 1.0,
) -> None:
    """One step of AdamW on arrays of one shape and dtype, of which parameter, m and v change in place.

        g = scale grad                               what clipping leaves of the gradient
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p
        p = p - lr (m / correction1) / (sqrt(v / correction2) + eps),    correction = 1 - beta^t at step t

    Raises ValueError for arrays that it cannot write to in place, or that differ.
    """
    arrays = {"parameter": parameter, "grad": grad, "m": m, "v": v}
    for name, array in arrays.items():
        if array.shape != parameter.shape or not covered(array, parameter):
            raise ValueError(
                f"adamw_step: {name} is {array.dtype}{array.shape} but the parameter {parameter.dtype}"
                f"{parameter.shape}: all need one shape, and float32 or float64"
            )
        if name != "grad" and not array.flags.carray:
            raise ValueError(
                f"adamw_step: {name} is strided or read-only, so it cannot be written as a vector"
            )
    _adamw_step(
        parameter.reshape(-1),
        contiguous(grad).reshape(-1),
        m.reshape(-1),
        v.reshape(-1),
        *(beta1, 1 - beta1, beta2, 1 - beta2),
        *(1 - lr * weight_decay, lr / correction1, 1 / correction2, eps, scale),
    )


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of the squares of all entries, of a float32 or float64 array of any shape."""
    flat = contiguous(array).reshape(-1)
    sums = np.empty(-(-flat.size // BLOCK), flat.dtype)
    _sum_of_squares(flat, sums)
    return float(sums.sum(dtype=np.float64))


@kernel("(T[::1], T[::1], T[::1], T[::1], T, T, T, T, T, T, T, T, T)")
def _adamw_step(parameter, grad, m, v, beta1, rest1, beta2, rest2, keep, rate, correction, eps, scale):
    for part in prange(PARTS):
        start, stop = share_of_entries(part, parameter.size), share_of_entries(part + 1, parameter.size)
        p_p, g_p, m_p, v_p = parameter[start:stop], grad[start:stop], m[start:stop], v[start:stop]
        for i in range(stop - start):
            g = g_p[i] * scale
            m_i = beta1 * m_p[i] + rest1 * g
            v_i = beta2 * v_p[i] + rest2 * (g * g)
            m_p[i], v_p[i] = m_i, v_i
            p_p[i] = keep * p_p[i] - rate * m_i / (np.sqrt(v_i * correction) + eps)


@kernel("(T[::1], T[::1])", LIGHT_PARALLEL_FROM)
def _sum_of_squares(array, sums):
    zero = array.dtype.type(0)
    for part in prange(PARTS):
        for block in range(share(part, sums.size), share(part + 1, sums.size)):
            entries = array[block * BLOCK : min((block + 1) * BLOCK, array.size)]
            total = zero
            for i in range(entries.size):
                total += entries[i] * entries[i]
            sums[block] = total
