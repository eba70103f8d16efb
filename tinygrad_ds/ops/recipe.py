"""How the products in FP8 are made: formats, tiles, scales, rounding and sums, in one object.

tg.fp8_linear(x, weight, recipe=tg.Fp8Recipe(gradient_format="e5m2"))
"""

from dataclasses import dataclass

from tinygrad_ds.device import Array
from tinygrad_ds.formats import find_format
from tinygrad_ds.ops.accumulation import check_accumulation, multiply
from tinygrad_ds.ops.quantize import SIDE, Tile

# Which random numbers a rounding takes: each its own, but W the same ones in forward and backward.
X, WEIGHT, G, X_AGAIN, G_AGAIN, CACHE = range(6)


@dataclass(frozen=True)
class Fp8Recipe:
    """The option `recipe` of all products in FP8. As it is without arguments, it is DeepSeek-V3's.

    Raises ValueError for formats and sums that are none.
    """

    format: str = "e4m3"
    """Of x and W."""
    gradient_format: str = "e4m3"
    """Of the gradient that arrives."""
    cache_format: str | None = None
    """In which x is kept for the weight gradient, None for the same as `format`; "e5m6" with power_of_two is
    DeepSeek's choice for the Linear behind attention."""
    side: int | None = SIDE
    """Of the tiles; None: one scale for each whole factor."""
    power_of_two: bool = False
    """Scales are rounded up to powers of two."""
    seed: int | None = None
    """None rounds to the nearest; an integer at random, right in the mean, each rounding with bits of its
    own drawn from it, W with the same ones in forward and backward."""
    accumulation: str = "float32"
    """How products are added: see `ops/accumulation.py`."""
    promote_every: int | None = SIDE
    """With accumulation="tensor_core": the terms after which a sum moves to float32."""

    def __post_init__(self) -> None:
        for name in (self.format, self.gradient_format, self.kept_format):
            find_format(name)
        check_accumulation(self.accumulation, self.promote_every)

    @property
    def kept_format(self) -> str:
        """The format in which x is kept."""
        return self.cache_format or self.format

    @property
    def kept_seed(self) -> int | None:
        """The seed of what is kept of x: the product's own, where they have one format."""
        return self.rounding(X if self.kept_format == self.format else CACHE)

    @property
    def across(self) -> Tile:
        """The tiles of a factor whose rows are summed over: 1 x side."""
        return None if self.side is None else (1, self.side)

    @property
    def down(self) -> Tile:
        """The tiles of a factor whose columns are summed over: side x 1."""
        return None if self.side is None else (self.side, 1)

    @property
    def block(self) -> Tile:
        """The tiles of a weight."""
        return None if self.side is None else (self.side, self.side)

    def rounding(self, which: int, expert: int = 0) -> int | None:
        """The seed of one rounding among those of a call."""
        return None if self.seed is None else self.seed * 8 + which + expert * 0x9E3779B1

    def multiply(self, a: Array, b: Array) -> Array:
        """a b with the sums of this recipe."""
        return multiply(a, b, self.accumulation, self.promote_every)


DEEPSEEK_V3 = Fp8Recipe()
