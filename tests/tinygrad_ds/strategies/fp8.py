"""Cases for ops/quantize.py and ops/fp8.py: any tiles, formats and ways to round."""

from hypothesis import strategies as st

from tests.tinygrad_ds.harness import Case, reals, shapes, strategy
from tests.tinygrad_ds.strategies.experts import experts_in_cases, experts_out_cases
from tinygrad_ds.ops.quantize import as_matrix, scales_shape, tile_size

FORMATS = st.sampled_from(["e4m3", "e5m2", "e5m6"])
SEEDS = st.none() | st.integers(0, 2**32 - 1)
TILES = st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def recipes(draw):
    """The options that all products in FP8 have."""
    return {
        "format": draw(FORMATS),
        "gradient_format": draw(FORMATS),
        "cache_format": draw(st.none() | FORMATS),
        "side": draw(st.none() | st.integers(1, 3)),
        "power_of_two": draw(st.booleans()),
        "seed": draw(SEEDS),
    }


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
    return Case((draw(reals((*rows, 2 * width))), draw(reals((outer, width)))), draw(recipes()))


@strategy("fp8_experts_in")
@st.composite
def fp8_experts_in_cases(draw):
    return Case(draw(experts_in_cases()).arrays, draw(recipes()))


@strategy("fp8_experts_out")
@st.composite
def fp8_experts_out_cases(draw):
    return Case(draw(experts_out_cases()).arrays, draw(recipes()))
