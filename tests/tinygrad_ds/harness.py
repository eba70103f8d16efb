"""What the registry walk needs to know of every primitive: cases to try and, for coarse ones, a composition.

    @strategy("rmsnorm")
    @st.composite
    def rmsnorm_cases(draw): ... return Case((x, weight), {"eps": 1e-6})

    @composition("rmsnorm")
    def rmsnorm_composed(x, weight, *, eps): ...      # the same from small primitives, on Tensors

Arrays of a case are float64 (integers and booleans as they are); the walk makes float32, non-contiguous and
read-only variants itself. Floating entries keep ten difference steps (1e-3) away from kinks and ties.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

STRATEGIES: dict[str, st.SearchStrategy] = {}
COMPOSITIONS: dict[str, Callable] = {}
MARGIN = 1e-3


@dataclass
class Case:
    """One call of a primitive: `forward(*arrays, **options)`."""

    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any] = field(default_factory=dict)


def strategy(name: str) -> Callable:
    """Register a function that returns a strategy of Cases for the primitive `name`."""

    def register(function: Callable) -> Callable:
        STRATEGIES[name] = function()
        return function

    return register


def composition(name: str) -> Callable:
    """Register the composition of the coarse primitive `name` from small ones."""

    def register(function: Callable) -> Callable:
        COMPOSITIONS[name] = function
        return function

    return register


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4) -> st.SearchStrategy:
    """Small shapes, 0-d, empty and size-1 axes among them."""
    return st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims).map(tuple)


@st.composite
def reals(
    draw: Any,
    shape: tuple[int, ...],
    low: float = -2.0,
    high: float = 2.0,
    kinks: tuple[float, ...] = (),
    distinct: bool = False,
) -> np.ndarray:
    """A float64 array in [low, high], its entries kept away from `kinks`, and from each other if distinct."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    if distinct:
        values = low + (high - low) * (rng.permutation(size) + 0.5 * rng.random(size)) / max(size, 1)
    else:
        values = rng.uniform(low, high, size)
    for kink in kinks:
        near = np.abs(values - kink) < 2 * MARGIN
        values[near] = kink + np.where(values[near] < kink, -2 * MARGIN, 2 * MARGIN)
    return values.reshape(shape)


@st.composite
def broadcast_pair(
    draw: Any, max_dims: int = 3, max_side: int = 4
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast against each other."""
    full = draw(shapes(0, max_dims, 0, max_side))

    def shrink(shape: tuple[int, ...]) -> tuple[int, ...]:
        kept = shape[draw(st.integers(0, len(shape))) :]
        return tuple(1 if draw(st.booleans()) and draw(st.booleans()) else side for side in kept)

    first, second = full, shrink(full)
    first = tuple(1 if draw(st.booleans()) and draw(st.booleans()) else side for side in first)
    return (first, second) if draw(st.booleans()) else (second, first)
