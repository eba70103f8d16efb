"""Normalisation. The reference form; its fused twin is in kernels/cpu/norm.py."""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.broadcast import fit
from tinygrad_ds.primitive import primitive


class RMSNormSaved(NamedTuple):
    """What rmsnorm_backward needs."""

    x_hat: Array  # (..., d)  the normalised input
    r: Array  # (..., 1)  one over the root mean square
    weight: Array  # (d,)


@primitive
def rmsnorm(x, weight, *, eps=1e-6):
    """Root-mean-square norm: y = x r w with r = (mean(x^2) + eps)^(-1/2) over the last axis.

    x (..., d), weight (d,) -> y (..., d).  Zhang and Sennrich 2019; DeepSeek-V2 (section 2.1) norms latents
    with it too.
    """
    xp = namespace(x)
    r = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    x_hat = (x * r).astype(x.dtype, copy=False)
    return x_hat * weight, RMSNormSaved(x_hat, r, weight)


@rmsnorm.backward
def rmsnorm_backward(saved, g):
    """From g = dL/dy to dL/dx and dL/dweight.

    y_i = w_i x_hat_i with x_hat_i = x_i r, so for the weight   dL/dw_i = sum g_i x_hat_i   over all rows.

    x reaches y directly and through r. With h_i = g_i w_i = dL/dx_hat_i:
        dr/dx_j   = -1/2 (mean(x^2) + eps)^(-3/2) * 2 x_j / d  =  -r^3 x_j / d
        dL/dx_j   = h_j r + sum_i h_i x_i dr/dx_j
                  = r (h_j - x_hat_j * mean_i(h_i x_hat_i)).
    In words: the gradient loses its component along x_hat, for scaling x changes nothing (but for eps).
    With eps = 0, then, dL/dx is orthogonal to x.
    """
    x_hat, r, weight = saved
    h = g * weight
    grad_x = r * (h - x_hat * (h * x_hat).mean(axis=-1, keepdims=True))
    return fit(grad_x, x_hat), fit(g * x_hat, weight)
