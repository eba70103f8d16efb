"""Rotary position embedding. The reference form; its fused twin is in kernels/cpu/rope.py."""

from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.primitive import primitive


class RopeSaved(NamedTuple):
    """What rope_backward needs."""

    cos: Array  # (..., d/2)
    sin: Array  # (..., d/2)
    interleaved: bool


@primitive
def rope(x, cos, sin, *, interleaved=True):
    """Turn the pairs of numbers in the last axis, pair j by its angle: y = R x.

        (y_a, y_b) = (x_a cos_j - x_b sin_j,  x_a sin_j + x_b cos_j)

    Pair j is (x_2j, x_2j+1) where interleaved, as in published DeepSeek weights, else (x_j, x_{j+d/2}); y has
    the same layout. x (..., d), cos and sin (..., d/2), broadcast against x's leading axes -> y (..., d); cos
    and sin get no gradient. Su et al. 2021 (section 3.2): where the angles grow with the position, q . k
    depends on the distance alone. ValueError where d is odd or cos does not have d/2 numbers.
    """
    d = x.shape[-1]
    if d % 2 or cos.shape[-1] != d // 2 or sin.shape[-1] != d // 2:
        raise ValueError(
            f"rope: x has {d} numbers in its last axis, cos {cos.shape[-1]} and sin {sin.shape[-1]}: "
            "x needs an even number, cos and sin half of it"
        )
    return _rotate(x, cos, sin, interleaved), RopeSaved(cos, sin, interleaved)


@rope.backward
def rope_backward(saved, g):
    """From g = dL/dy to dL/dx.

    y = R x with R made of the blocks [[cos, -sin], [sin, cos]], so dL/dx = R^T g. The transposed block is
    [[cos, sin], [-sin, cos]]: the same with -sin for sin, a turn by the opposite angle.
    R^T R = 1, so the gradient keeps its length.
    """
    cos, sin, interleaved = saved
    return _rotate(g, cos, -sin, interleaved), None, None


def _rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Every pair of x turned. The result has x's shape and dtype."""
    y = namespace(x).empty(x.shape, dtype=x.dtype)
    x_a, x_b = _pairs(x, interleaved)
    y_a, y_b = _pairs(y, interleaved)
    y_a[...] = x_a * cos - x_b * sin
    y_b[...] = x_a * sin + x_b * cos
    return y


def _pairs(x: Array, interleaved: bool) -> tuple[Array, Array]:
    """Views of the first and of the second member of every pair, each (..., d/2)."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
