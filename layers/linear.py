"""Linear and Embedding: the two ways to use a matrix of weights."""

from collections.abc import Iterator

import numpy as np

import tinygrad_ds as tg
from layers.module import Module, Part, parameter
from layers.precision import products
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array


class Linear(Module):
    """y = W x + b. x (..., inputs) -> y (..., outputs); W (outputs, inputs) as published.

    `merged`: (name, rows) of the published matrices that W holds one above the other, as they read the same
    x. `behind_attention`: FP8 training keeps that x in a format of its own.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dtype: np.dtype,
        *,
        bias: bool = False,
        merged: tuple[tuple[str, int], ...] = (),
        behind_attention: bool = False,
    ) -> None:
        self.weight = parameter((outputs, inputs), dtype)
        self.bias = parameter((outputs,), dtype) if bias else None
        self.merged, self.behind_attention = merged, behind_attention

    def __call__(self, x: Tensor) -> Tensor:
        return products().linear(x, self.weight, self.bias, behind_attention=self.behind_attention)

    def published(self, path: str = "") -> Iterator[Part]:
        """The matrix, or those merged into it under their own names."""
        if not self.merged:
            yield from super().published(path)
            return
        above, start = path.rstrip(".").rpartition(".")[0], 0
        for name, rows in self.merged:
            piece = slice(start, start + rows)
            yield Part(f"{above}.{name}.weight", self.weight, piece)
            if self.bias is not None:
                yield Part(f"{above}.{name}.bias", self.bias, piece)
            start += rows


class Embedding(Module):
    """A row of W for every id. ids (...) -> (..., outputs); W (rows, outputs)."""

    def __init__(self, rows: int, outputs: int, dtype: np.dtype) -> None:
        self.weight = parameter((rows, outputs), dtype)

    def __call__(self, ids: Array) -> Tensor:
        return tg.embedding(self.weight, ids)
