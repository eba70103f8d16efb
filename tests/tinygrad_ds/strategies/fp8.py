"""Cases for ops/quantize.py and ops/fp8.py: any tiles, formats and ways to round."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import Case, reals, shapes, strategy
from tests.tinygrad_ds.strategies.experts import experts_in_cases, experts_out_cases
from tinygrad_ds.ops.fp8 import from_cache
from tinygrad_ds.ops.fp8_swiglu import hidden
from tinygrad_ds.ops.moe import runs
from tinygrad_ds.ops.quantize import as_matrix, quantize, scales_shape, tile_size
from tinygrad_ds.ops.recipe import X_AGAIN, Fp8Recipe, X

FORMATS = st.sampled_from(["e4m3", "e5m2", "e5m6"])
SEEDS = st.none() | st.integers(0, 2**32 - 1)
TILES = st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def recipes(draw):
    """The option that all products in FP8 have."""
    recipe = Fp8Recipe(
        format=draw(FORMATS),
        gradient_format=draw(FORMATS),
        cache_format=draw(st.none() | FORMATS),
        side=draw(st.none() | st.integers(1, 3)),
        power_of_two=draw(st.booleans()),
        seed=draw(SEEDS),
    )
    return {"recipe": recipe}


@strategy("quantize")
@st.composite
def quantize_cases(draw):
    """Tiles that do not divide the shape, of numbers that may all be below the least amax."""
    size = draw(st.sampled_from([2.0, 1e-5, 100.0]))
    options = {
        "format": draw(FORMATS),
        "tile": draw(TILES),
        "power_of_two": draw(st.booleans()),
        "seed": draw(SEEDS),
    }
    return Case((draw(reals(draw(shapes()), -size, size)),), options)


@strategy("dequantize")
@st.composite
def dequantize_cases(draw):
    """Scales for every tile."""
    values, tile = draw(reals(draw(shapes()))), draw(TILES)
    rows = as_matrix(values).shape
    return Case((values, draw(reals(scales_shape(rows, tile_size(tile, rows)), 0.1))), {"tile": tile})


@strategy("fp8_linear")
@st.composite
def fp8_linear_cases(draw):
    """Any number of rows, with and without a bias."""
    rows, inner, outer = draw(shapes(max_dims=2)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    arrays = [draw(reals((*rows, inner))), draw(reals((outer, inner)))]
    if draw(st.booleans()):
        arrays.append(draw(reals((outer,))))
    return Case(tuple(arrays), draw(recipes()))


@strategy("fp8_swiglu_linear")
@st.composite
def fp8_swiglu_linear_cases(draw):
    rows, width, outer = draw(shapes(max_dims=2)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    case = Case((draw(reals((*rows, 2 * width))), draw(reals((outer, width)))), draw(recipes()))
    assume(away_from_ties(tg.fp8_swiglu_linear, case))
    return case


@strategy("fp8_experts_in")
@st.composite
def fp8_experts_in_cases(draw):
    return Case(draw(experts_in_cases()).arrays, draw(recipes()))


@strategy("fp8_experts_out")
@st.composite
def fp8_experts_out_cases(draw):
    case = Case(draw(experts_out_cases()).arrays, draw(recipes()))
    assume(away_from_ties(tg.fp8_experts_out, case))
    return case


def away_from_ties(primitive, case):
    """Whether Q(h) is the same for all h that differ by no more than two kinds of exp may.

    Gates and ups that were rounded to a coarse grid often make ratios of two h that are ties.
    """
    signs = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in case.arrays]
        saved = primitive.forward(*arrays, **case.options)[1]
        recipe, kept = saved.recipe, from_cache(saved.gate_up, saved.recipe, dtype)
        pieces = [(hidden(as_matrix(arrays[0])), recipe.across, recipe.rounding(X))]
        for e, start, stop in runs(getattr(saved, "bounds", [0, len(kept)])):
            pieces.append((hidden(kept[start:stop]), recipe.down, recipe.rounding(X_AGAIN, e)))
        for h, tile, seed in pieces:
            options = {"format": recipe.format, "tile": tile, "seed": seed}
            options["power_of_two"] = recipe.power_of_two
            values = quantize.forward(h, **options)[0].values
            for _ in range(3):
                near = h * (1 + 2e-6 * signs.choice([-1.0, 1.0], h.shape)).astype(dtype)
                if not np.array_equal(quantize.forward(near, **options)[0].values, values):
                    return False
    return True
