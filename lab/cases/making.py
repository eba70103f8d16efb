"""How cases are made: small and random for checks, with fixed sizes for examples and for measuring.

    @case("rmsnorm")
    def rmsnorm(draw):
        d = draw.size("d")
        return Case((draw.reals(*draw.lead(), d), draw.reals(d)), {"eps": 0.1})

One maker serves all three, for it asks `draw` for every size and choice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinygrad_ds.device import generator

# The sizes at which bytes and seconds are given.
STANDARD = {
    "batch": 4,
    "time": 128,
    "d": 256,
    "out": 512,
    "heads": 8,
    "group": 1,
    "head": 32,
    "vocab": 2048,
    "experts": 8,
    "chosen": 2,
}
# Small enough to follow with pencil and paper.
WORKED = {
    "batch": 2,
    "time": 2,
    "d": 3,
    "out": 2,
    "heads": 1,
    "group": 1,
    "head": 2,
    "vocab": 3,
    "experts": 3,
    "chosen": 2,
}
AWAY = 0.05  # how far entries stay from kinks and from each other


class Case(NamedTuple):
    """One call of a function: its arrays (float64, int64 or bool) and options."""

    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any] = {}


class Draw:
    """Random numbers and sizes. With `sizes` every size is as they say, and every choice the first one.

    side: the largest size of an axis otherwise. digits: how many decimals numbers have, None for all.
    """

    def __init__(
        self,
        seed: int | tuple[int, ...],
        side: int = 3,
        sizes: dict[str, int] | None = None,
        digits: int | None = 2,
    ) -> None:
        self.random = generator(seed)
        self.side, self.sizes, self.digits = side, sizes, digits

    def size(self, name: str, least: int = 1) -> int:
        """The size of the axis called `name`, at least `least`."""
        if self.sizes is not None:
            return max(self.sizes[name], least)
        largest = max(self.side, least)
        if self.random.random() < 0.2:
            return least
        return int(self.random.integers(min(max(2, least), largest), largest + 1))

    def lead(self) -> tuple[int, ...]:
        """Axes in front: one in worked examples, batch and time at the standard size, else 0 to 2."""
        if self.sizes is WORKED:
            return (2,)
        if self.sizes is not None:
            return self.sizes["batch"], self.sizes["time"]
        return tuple(self.size("") for _ in range(self.random.choice([0, 1, 1, 2])))

    def shape(self) -> tuple[int, ...]:
        """Axes in front and one more."""
        return (*self.lead(), self.size("d"))

    def among(self, *choices: Any) -> Any:
        """One of them."""
        return choices[0 if self.sizes is not None else int(self.random.integers(len(choices)))]

    def axis(self, shape: tuple[int, ...]) -> int:
        """One of the axes, counted from either end."""
        return -1 if self.sizes is not None else int(self.random.integers(-len(shape), len(shape)))

    def part(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`: axes left out in front, others of size 1."""
        if self.sizes is not None:
            return shape[-1:]
        kept = shape[int(self.random.integers(len(shape) + 1)) :]
        return tuple(1 if self.random.random() < 0.3 else size for size in kept)

    def reals(
        self, *shape: int, low: float = -2.0, high: float = 2.0, kinks: tuple[float, ...] = ()
    ) -> np.ndarray:
        """Numbers between low and high, away from kinks."""
        values = self.random.uniform(low, high, shape)
        if self.digits is not None:
            values = np.round(values, self.digits)
        for kink in kinks:
            near = np.abs(values - kink) < AWAY
            values = np.where(near, kink + np.where(values < kink, -AWAY, AWAY), values)
        return values

    def distinct(self, *shape: int) -> np.ndarray:
        """Numbers no two of which are equal, in any order."""
        size = int(np.prod(shape))
        return (self.random.permutation(size).reshape(shape) - size / 2 + 0.25) * max(0.1, 3 / max(size, 1))

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Whole numbers from low to high; repeats are likely."""
        return np.asarray(self.random.integers(low, high + 1, shape), dtype=np.int64)

    def choices(self, tokens: int, experts: int, count: int) -> np.ndarray:
        """(tokens, count) different experts a token, ascending."""
        rows = [np.sort(self.random.permutation(experts)[:count]) for _ in range(tokens)]
        return np.array(rows, dtype=np.int64).reshape(tokens, count)


Maker = Callable[[Draw], Case]
MAKERS: dict[str, Maker] = {}


def case(*names: str) -> Callable[[Maker], Maker]:
    """Register a maker of cases for the primitives of these names."""

    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, maker))
        return maker

    return register


def standard(maker: Maker, dtype: str = "float32") -> Case:
    """The case at the standard size."""
    arrays, options = maker(Draw(0, sizes=STANDARD, digits=None))
    return Case(tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays), options)


def worked(maker: Maker) -> Case:
    """The case that is small enough to be followed."""
    return maker(Draw(4, sizes=WORKED, digits=1))


def small(maker: Maker, count: int, seed: int = 0) -> list[Case]:
    """`count` random cases, those with the fewest entries first."""
    sides = [1 if i < count // 8 else 2 + 3 * i // count for i in range(count)]
    cases = [maker(Draw((seed, i), side=side)) for i, side in enumerate(sides)]
    return sorted(cases, key=lambda made: sum(array.size for array in made.arrays))


def cotangent(y: np.ndarray, seed: int = 0, digits: int | None = 2) -> np.ndarray:
    """A gradient that may arrive at y: of its shape and dtype, with no zeros."""
    g = generator((seed, y.size)).uniform(0.3, 2.0, y.shape)
    g *= generator((seed, y.size, 1)).choice([-1.0, 1.0], y.shape)
    return np.asarray(g if digits is None else np.round(g, digits), dtype=y.dtype)
