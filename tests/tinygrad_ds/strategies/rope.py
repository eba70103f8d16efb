"""Cases for ops/rope.py."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, composition, reals, shapes, strategy


@strategy("rope")
@st.composite
def rope_cases(draw):
    """Both layouts; an angle for every position, or shared along axes as broadcasting has it."""
    lead, half = draw(shapes(max_dims=3, max_side=3)), draw(st.integers(0, 3))
    own = lead[draw(st.integers(0, len(lead))) :]
    own = tuple(1 if draw(st.integers(0, 3)) == 0 else size for size in own)
    angle = draw(reals((*own, half), low=-4.0, high=4.0))
    return Case(
        (draw(reals((*lead, 2 * half))), np.cos(angle), np.sin(angle)),
        {"interleaved": draw(st.booleans())},
    )


@composition("rope")
def rope_composed(x, cos, sin, *, interleaved):
    cos, sin = cos.detach(), sin.detach()
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = a * cos - b * sin, a * sin + b * cos
    if not interleaved:
        return tg.concatenate(turned, axis=-1)
    return tg.stack(turned, axis=-1).reshape(x.shape)
