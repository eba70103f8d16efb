"""The precision of a network's products with weights: the model's own, or rounded as on a GPU.

    with precision(Fp8(), seed=step):
        model.loss(ids, targets).backward()

Every Linear and all experts ask `products()` for theirs. Embedding, output head, router, norms and attention
itself keep the model's own precision in all cases, as in DeepSeek-V3 (section 3.3.1).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import tinygrad_ds as tg
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, device_of
from tinygrad_ds.ops.quantize import Infinities, count_infinities
from tinygrad_ds.ops.recipe import Fp8Recipe

CALLS = 1 << 20  # more than a step has: seeds of one step stay apart from those of the next


class Products:
    """In the model's own precision; the base of the others."""

    rounds = False

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, behind_attention: bool = False
    ) -> Tensor:
        """y = W x + b, x (..., in) -> (..., out); behind attention x may be kept in a format of its own."""
        return tg.linear(x, weight) if bias is None else tg.linear(x, weight, bias)

    def swiglu_linear(self, gate_up: Tensor, weight: Tensor) -> Tensor:
        """W (silu(gate) * up) of [gate | up] (..., 2 width)."""
        gate, up = tg.split(gate_up, sections=2, axis=-1)  # (..., width) each
        return self.linear(tg.swiglu(gate, up), weight)

    def experts_in(self, x: Tensor, weight: Tensor, position: Array, offsets: Array) -> Tensor:
        """[gate | up] (tokens K, 2 width) of the experts that each row of x (tokens, hidden) goes to."""
        return tg.experts_in(x, weight, position, offsets)

    def experts_out(
        self, gate_up: Tensor, weights: Tensor, weight: Tensor, position: Array, offsets: Array
    ) -> Tensor:
        """The experts' outputs, weighted and added up for each token: (tokens, hidden)."""
        return tg.experts_out(gate_up, weights, weight, position, offsets)


class Bfloat16(Products):
    """Factors of all products, and the gradients that arrive, rounded to bfloat16; sums in float32.

    On a GPU a Linear's factors are kept and multiplied as bfloat16, for which it has hardware; elsewhere, and
    for experts everywhere, rounded numbers are multiplied in float32.
    """

    rounds = True

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, behind_attention: bool = False
    ) -> Tensor:
        """As above; a gradient is rounded on its way back through each of the three roundings."""
        if bias is None and device_of(x.data) == "cuda" and x.dtype == np.float32:
            factors = tg.astype(x, dtype="bfloat16"), tg.astype(weight, dtype="bfloat16")
            return tg.astype(tg.linear(*factors), dtype=x.dtype)
        return rounded(super().linear(rounded(x), rounded(weight), bias))

    def experts_in(self, x: Tensor, weight: Tensor, position: Array, offsets: Array) -> Tensor:
        """As above."""
        return rounded(super().experts_in(rounded(x), rounded(weight), position, offsets))

    def experts_out(
        self, gate_up: Tensor, weights: Tensor, weight: Tensor, position: Array, offsets: Array
    ) -> Tensor:
        """As above; the SwiGLU in between is not rounded."""
        return rounded(super().experts_out(rounded(gate_up), weights, rounded(weight), position, offsets))


def rounded(x: Tensor) -> Tensor:
    """x to the numbers of bfloat16, in its own dtype; the gradient is rounded in the same way."""
    return tg.astype(tg.astype(x, dtype="bfloat16"), dtype=x.dtype)


@dataclass(frozen=True)
class Fp8(Products):
    """The FP8 recipe of DeepSeek-V3, section 3.3, and what one might do in its place."""

    gradient_format: Literal["e4m3", "e5m2"] = "e4m3"
    """Of the gradients that arrive at a product. Before V3, e5m2 was usual."""
    scaling: Literal["tile", "tensor"] = "tile"
    """A scale for each tile of 1 x 128 and block of 128 x 128, or one for each tensor."""
    power_of_two: bool = False
    """Round all scales up to powers of two."""
    stochastic: bool = False
    """Round up or down at random, right in the mean, in place of to the nearest."""
    accumulation: Literal["float32", "tensor_core"] = "float32"
    """tensor_core adds with 14 bits, as the hardware does; slow to simulate."""
    promote_every: int = 128
    """With tensor_core: terms after which a sum moves to float32; 0 for never."""
    after_attention: Literal["e5m6", "e4m3"] = "e5m6"
    """What keeps the input of the Linear behind attention, with scales that are powers of two."""

    rounds = True

    def recipe(self, *, behind_attention: bool = False) -> Fp8Recipe:
        """That of the next product; one that rounds at random has a seed of its own."""
        fine = behind_attention and self.after_attention != "e4m3"
        return Fp8Recipe(
            gradient_format=self.gradient_format,
            cache_format=self.after_attention if fine else None,
            side=128 if self.scaling == "tile" else None,
            power_of_two=self.power_of_two or fine,
            seed=_seeds.get().draw() if self.stochastic else None,
            accumulation=self.accumulation,
            promote_every=self.promote_every or None,
        )

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, behind_attention: bool = False
    ) -> Tensor:
        """As above, x quantised by 1 x 128 and W by 128 x 128."""
        arrays = (x, weight) if bias is None else (x, weight, bias)
        return tg.fp8_linear(*arrays, recipe=self.recipe(behind_attention=behind_attention))

    def swiglu_linear(self, gate_up: Tensor, weight: Tensor) -> Tensor:
        """As above; [gate | up] is kept in FP8 and the SwiGLU computed again in backward."""
        return tg.fp8_swiglu_linear(gate_up, weight, recipe=self.recipe())

    def experts_in(self, x: Tensor, weight: Tensor, position: Array, offsets: Array) -> Tensor:
        """As above; x is quantised before it goes to the experts."""
        return tg.fp8_experts_in(x, weight, position, offsets, recipe=self.recipe())

    def experts_out(
        self, gate_up: Tensor, weights: Tensor, weight: Tensor, position: Array, offsets: Array
    ) -> Tensor:
        """As above; [gate | up] is kept in FP8."""
        return tg.fp8_experts_out(gate_up, weights, weight, position, offsets, recipe=self.recipe())


@dataclass
class Seeds:
    """Those of the roundings of a `with` block."""

    next: int

    def draw(self) -> int:
        """One that no other call has."""
        self.next += 1
        return self.next - 1


EXACT = Products()
_products: ContextVar[Products] = ContextVar("products", default=EXACT)
_seeds: ContextVar[Seeds] = ContextVar("seeds")  # set wherever an Fp8 is


def products() -> Products:
    """How products are computed here."""
    return _products.get()


@contextmanager
def precision(chosen: Products, *, seed: int = 0, infinities: Infinities | None = None) -> Iterator[None]:
    """Compute products as `chosen` for the length of a `with` block.

    seed: of stochastic rounding, such as the number of the step; every call in the block draws its own.
    infinities: where those are counted that FP8 makes its largest number, in backward too if it runs here.
    """
    before, seeds = _products.set(chosen), _seeds.set(Seeds(seed * CALLS))
    try:
        with nullcontext() if infinities is None else count_infinities(infinities):
            yield
    finally:
        _products.reset(before)
        _seeds.reset(seeds)


def recompute(function: Callable, *inputs: Tensor) -> Any:
    """`tg.recompute`, where products are multiplied and rounded the second time as the first, wherever
    backward is called.
    """
    return tg.recompute(_repeatable(function), *inputs)


def _repeatable(function: Callable) -> Callable:
    """`function`, multiplying and rounding in every call as in its first."""
    first: tuple[Products, int] | None = None

    def run(*inputs: Any) -> Any:
        nonlocal first
        if first is None:
            seeds = _seeds.get(None)
            first = products(), 0 if seeds is None else seeds.next
            return function(*inputs)
        before, seeds_before = _products.set(first[0]), _seeds.set(Seeds(first[1]))
        try:
            return function(*inputs)
        finally:
            _products.reset(before)
            _seeds.reset(seeds_before)

    return run
