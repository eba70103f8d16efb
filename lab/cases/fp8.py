"""Cases for the primitives of FP8 training: tiles that do not divide the shape, and every format."""

from typing import Any

from lab.cases.making import MAKERS, Case, Draw, case
from tinygrad_ds import Fp8Recipe

STANDARD_SIDE = 128


def side_of(draw: Draw) -> int:
    """The side of a tile: DeepSeek's at the standard size, else so small that there are several."""
    return STANDARD_SIDE if draw.sizes and draw.sizes["d"] >= STANDARD_SIDE else 2


@case("quantize")
def quantize(draw: Draw) -> Case:
    """A tile across each row, down each column, of both, or of everything."""
    side = side_of(draw)
    return Case(
        (draw.reals(*draw.shape()),),
        {
            "format": draw.among("e4m3", "e5m2", "e5m6"),
            "tile": draw.among((1, side), (side, 1), (side, side), None),
            "power_of_two": draw.among(False, True),
            "seed": draw.among(None, 1, 2),
        },
    )


@case("dequantize")
def dequantize(draw: Draw) -> Case:
    """One scale for every `side` channels of a row."""
    shape, side = draw.shape(), side_of(draw)
    rows = 1
    for size in shape[:-1]:
        rows *= size
    scales = draw.reals(rows, -(-shape[-1] // side), low=0.1)
    return Case((draw.reals(*shape), scales), {"tile": (1, side)})


@case("fp8_linear")
def fp8_linear(draw: Draw) -> Case:
    """With and without a bias."""
    inner, outer = draw.size("d"), draw.size("out")
    arrays = draw.reals(*draw.lead(), inner), draw.reals(outer, inner), draw.reals(outer)
    return Case(arrays if draw.among(True, False) else arrays[:2], recipe(draw))


@case("fp8_swiglu_linear")
def fp8_swiglu_linear(draw: Draw) -> Case:
    """Gate and up side by side."""
    width = draw.size("out")
    return Case((draw.reals(*draw.lead(), 2 * width), draw.reals(draw.size("d"), width)), recipe(draw))


@case("fp8_experts_in")
def fp8_experts_in(draw: Draw) -> Case:
    """The tokens of `experts_in`."""
    return Case(MAKERS["experts_in"](draw).arrays, recipe(draw))


@case("fp8_experts_out")
def fp8_experts_out(draw: Draw) -> Case:
    """The rows of `experts_out`."""
    return Case(MAKERS["experts_out"](draw).arrays, recipe(draw))


def recipe(draw: Draw) -> dict[str, Any]:
    """The option that all products in FP8 have."""
    chosen = Fp8Recipe(
        gradient_format=draw.among("e4m3", "e5m2"),
        cache_format=draw.among(None, "e5m6"),
        side=draw.among(side_of(draw), None),
        power_of_two=draw.among(False, True),
        seed=draw.among(None, 3),
    )
    return {"recipe": chosen}
