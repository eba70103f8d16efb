"""`lab fp8`: what FP8 does to numbers: histograms on the grid, errors by tile, underflow by layer.

Three things stand between a number and its FP8 form: the scale of its tile, the grid, and the end of the grid
at the bottom. All is measured on one training step, on the factors that its FP8 products quantise.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinygrad_ds as tg
from lab.figures import error_map, grid_figure
from lab.pieces import columns, fragment, page, table
from lab.tracing import BATCH, SMALL, TIME, run_step
from layers import DeepSeekModel
from layers.precision import Fp8, precision
from tinygrad_ds import Tensor
from tinygrad_ds.device import Array, generator, to_host
from tinygrad_ds.ops.quantize import SIDE, as_matrix, dequantize, expand, quantize, tile_size
from tinygrad_ds.tape import Record

OUTLIER = 1000.0
SCALINGS: dict[str, dict[str, Any]] = {
    "a scale for the tensor": {"tile": None},
    f"a scale for each 1 x {SIDE}": {"tile": (1, SIDE)},
    f"a scale for each {SIDE} x {SIDE}": {"tile": (SIDE, SIDE)},
    f"1 x {SIDE}, scales powers of two": {"tile": (1, SIDE), "power_of_two": True},
}


class Rounded(NamedTuple):
    """A matrix under one scaling."""

    scaled: np.ndarray  # x / s, before it is rounded
    scales: np.ndarray
    errors: np.ndarray  # root mean square by tile, relative to that of the tile
    error: float  # of all entries
    underflow: float  # share of the numbers that became 0 and were not
    saturated: float  # share that stands at the largest number


@dataclass(frozen=True)
class Row:
    """What a factor of one layer's product lost. Shares of its entries, 0 to 1."""

    module: str
    factor: str  # input, weight or gradient
    size: int
    error: float
    underflow: float
    saturated: float
    infinities: int
    by_tensor: float  # underflow if all of it had one scale


@dataclass(frozen=True)
class EightBits:
    """A tensor under every scaling, and the factors of every product of a step."""

    title: str
    name: str  # of the tensor that is shown
    tensor: np.ndarray  # (rows, channels)
    rows: list[Row]

    def shown(self) -> dict[str, np.ndarray]:
        """The tensor as it is, and with one channel a thousand times as large."""
        outlier = self.tensor.copy()
        outlier[:, outlier.shape[1] // 3] *= OUTLIER
        return {self.name: self.tensor, f"{self.name}, one channel times {OUTLIER:.0f}": outlier}

    def __repr__(self) -> str:
        parts = [self.title]
        for name, tensor in self.shown().items():
            parts.append(f"{name}, {tensor.shape[0]} x {tensor.shape[1]}, in E4M3")
            parts.append(columns(SCALING_HEAD, scaling_rows(tensor)))
        return "\n\n".join(
            [*parts, "by layer", columns(LAYER_HEAD, layer_rows(self.rows), left=(0, 1)), NOTE]
        )

    def body(self) -> str:
        """The same as HTML with figures, without the page around it."""
        parts = [f"<p>{self.title}. {INTRODUCTION}</p>"]
        for name, tensor in self.shown().items():
            parts.append(f"<h2>{name}</h2><p>{tensor.shape[0]} rows of {tensor.shape[1]} channels.</p>")
            parts.append(table(SCALING_HEAD, scaling_rows(tensor)))
            under = {scaling: rounded(tensor, **how) for scaling, how in SCALINGS.items()}
            pieces = [grid_figure(each.scaled, scaling) for scaling, each in under.items()]
            parts.append(f"<h3>On the grid</h3><p>{GRID}</p><div class=pair>{''.join(pieces)}</div>")
            maps = [error_map(each.errors, scaling) for scaling, each in under.items()]
            parts.append(f"<h3>Error by tile</h3><p>{ERRORS}</p><div class=pair>{''.join(maps)}</div>")
        parts.append(f"<h2>Layer by layer</h2><p>{NOTE}</p>")
        parts.append(table(LAYER_HEAD, layer_rows(self.rows), left=(0, 1)))
        return "\n".join(parts)

    def page(self) -> str:
        """A whole page, which needs no other file."""
        return page("What FP8 does to numbers", f"<h1>What FP8 does to numbers</h1>{self.body()}")

    def _repr_html_(self) -> str:
        return fragment(self.body())


SCALING_HEAD = ("scaling", "error", "underflow", "at the largest", "smallest scale", "largest scale")
LAYER_HEAD = (
    "layer", "factor", "numbers", "error", "underflow", "with one scale", "at the largest", "infinities",
)  # fmt: skip
INTRODUCTION = (
    "A tile of numbers is divided by a scale, so that its largest becomes 448, and rounded to the numbers "
    "that E4M3 has: 126 on either side of 0, from 2<sup>-9</sup> on, eight to each doubling."
)
GRID = (
    "How many numbers have which size once they are divided by their scale; the lines are the grid, the "
    "shaded part is what becomes 0. Between 2<sup>-6</sup> and 448 the error is at most 1/16 of a number; "
    "below, the grid is even, so that small numbers lose digits one by one."
)
ERRORS = (
    f"Each cell is one of the tiles of 1 x {SIDE}, whatever the scale was taken over: its error, relative to "
    "what stands in it."
)
NOTE = (
    "error: root mean square, relative. underflow: numbers that became 0, and with one scale for the tensor "
    "in place of its tiles. at the largest: those that stand at 448; a tile has one at least, unless it is "
    "tiny or its scale a power of two, and with it all that was rounded up to it. infinities: those that "
    "were made finite."
)


def rounded(x: np.ndarray, *, tile: tuple[int, int] | None, power_of_two: bool = False) -> Rounded:
    """What E4M3 leaves of a matrix x, and what it costs."""
    given, _ = quantize.forward(x, tile=tile, power_of_two=power_of_two)
    back = dequantize.forward(given.values, given.scales, tile=tile)[0]
    scaled = x / expand(given.scales, x.shape, tile_size(tile, x.shape))
    known = np.isfinite(x)
    wrong, size = (np.where(known, part, 0).astype(np.float64) ** 2 for part in (back - x, x))
    starts = np.arange(0, x.shape[1], SIDE)
    errors = np.sqrt(
        np.add.reduceat(wrong, starts, axis=1) / np.maximum(np.add.reduceat(size, starts, axis=1), 1e-300)
    )
    count = max(x.size, 1)
    return Rounded(
        scaled,
        given.scales,
        errors,
        float(np.sqrt(wrong.sum() / max(size.sum(), 1e-300))),
        int(((given.values == 0) & (x != 0)).sum()) / count,
        int((abs(given.values) == 448).sum()) / count,
    )


def scaling_rows(tensor: np.ndarray) -> Iterator[tuple]:
    """Rows for SCALING_HEAD."""
    for name, how in SCALINGS.items():
        each = rounded(tensor, **how)
        shares = f"{each.error:.2%}", f"{each.underflow:.2%}", f"{each.saturated:.3%}"
        yield name, *shares, f"{each.scales.min():.2e}", f"{each.scales.max():.2e}"


def layer_rows(rows: list[Row]) -> Iterator[tuple]:
    """Rows for LAYER_HEAD."""
    for row in rows:
        shares = f"{row.error:.2%}", f"{row.underflow:.3%}", f"{row.by_tensor:.3%}", f"{row.saturated:.3%}"
        yield row.module, row.factor, f"{row.size:,}", *shares, row.infinities


@lru_cache(maxsize=2)
def fp8(run: Path | str | None = None) -> EightBits:
    """Look at one FP8 step of a small network, or of the newest checkpoint of a run's folder on its text.

    Raises UserError for a folder that is no run's.
    """
    if run is None:
        model = DeepSeekModel(SMALL.replace(hidden_size=256, intermediate_size=384), seed=0)
        ids = generator(0).integers(0, SMALL.vocab_size, (BATCH, 4 * TIME + 1))
        return look(model, ids[:, :-1], ids[:, 1:], "A step of a small network that has learnt nothing yet")
    model, rows, checkpoint = run_step(Path(run))
    return look(model, rows.ids, rows.targets, f"A step of {checkpoint}")


def look(model: DeepSeekModel, ids: np.ndarray, targets: np.ndarray, title: str) -> EightBits:
    """Forward and backward in FP8, watched."""
    watch = Watch(model)
    weights = {"mtp_weight": 0.3 if model.mtp else 0.0, "balance_weight": 1e-4 if model.moe_layers() else 0.0}
    with tg.observe(watch), precision(Fp8()):
        model.loss(ids, targets, **weights).backward()
    model.zero_grad()
    return EightBits(title, f"the input of {watch.first}", watch.tensor, list(watch.rows()))


class Watch:
    """An observer of FP8 products: what their factors lose, by the module that called."""

    FACTORS = {  # the place of x and of W among the inputs
        "fp8_linear": (0, 1),
        "fp8_swiglu_linear": (0, 1),
        "fp8_experts_in": (0, 1),
        "fp8_experts_out": (0, 2),
    }

    def __init__(self, model: DeepSeekModel) -> None:
        self.paths = {id(leaf.data): path.removesuffix(".weight") for path, leaf in model.named_leaves()}
        self.first, self.tensor = "", np.zeros((1, 1), np.float32)
        self.found: dict[str, list[Row]] = defaultdict(list)

    def forward(self, pair: Any, arrays: list[Array], result: Any, saved: Any, seconds: float) -> None:
        """A forward ran."""
        if pair.name not in self.FACTORS:
            return
        x, weight = (to_host(arrays[place]) for place in self.FACTORS[pair.name])
        name = self.paths[id(arrays[self.FACTORS[pair.name][1]])]
        if pair.name in ("fp8_swiglu_linear", "fp8_experts_out"):  # kept as [gate | up], multiplied as h
            gate, up = np.split(x, 2, axis=-1)
            x = tg.swiglu(Tensor(gate), Tensor(up)).data
        x = as_matrix(x)
        if not self.first:
            self.first, self.tensor = name, x.copy()
        self.found[name] += [lost(name, "input", x, (1, SIDE)), lost(name, "weight", weight, (SIDE, SIDE))]

    def backward(self, record: Record, grads: list[Array], given: tuple, seconds: float) -> None:
        """A backward ran."""
        if record.pair.name in self.FACTORS:
            name = self.paths[id(record.saved.weight)]
            self.found[name].append(lost(name, "gradient", as_matrix(to_host(grads[0])), (1, SIDE)))

    def rows(self) -> Iterator[Row]:
        """All of it, layer by layer."""
        for found in self.found.values():
            yield from found


def lost(module: str, factor: str, x: np.ndarray, tile: tuple[int, int]) -> Row:
    """A row of the table; an expert's matrix has tiles of its own."""
    parts = [x] if x.ndim == 2 else list(x)
    each = [rounded(part, tile=tile) for part in parts]
    one = [rounded(part, tile=None) for part in parts]
    size = [float(np.square(part[np.isfinite(part)].astype(np.float64)).sum()) for part in parts]
    wrong = sum(part.error**2 * weight for part, weight in zip(each, size))
    return Row(
        module,
        factor,
        x.size,
        float(np.sqrt(wrong / max(sum(size), 1e-300))),
        float(np.mean([part.underflow for part in each])),
        float(np.mean([part.saturated for part in each])),
        int(np.isinf(x).sum()),
        float(np.mean([part.underflow for part in one])),
    )
