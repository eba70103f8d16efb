"""Cases for the primitives that work entry by entry, reduce axes, move entries or read them by index."""

import numpy as np

from lab.cases.making import Case, Draw, case


def two_shapes(draw: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of which one broadcasts to the other, either one."""
    shape = draw.shape()
    pair = shape, draw.part(shape)
    return pair if draw.among(True, False) else pair[::-1]


@case("add", "subtract", "multiply")
def two_arrays(draw: Draw) -> Case:
    """Two arrays that broadcast."""
    a, b = two_shapes(draw)
    return Case((draw.reals(*a), draw.reals(*b)))


@case("divide")
def divide(draw: Draw) -> Case:
    """Divisors away from 0."""
    a, b = two_shapes(draw)
    return Case((draw.reals(*a), draw.reals(*b, low=0.4)))


@case("power")
def power(draw: Draw) -> Case:
    """Positive bases."""
    a, b = two_shapes(draw)
    return Case((draw.reals(*a, low=0.4), draw.reals(*b)))


@case("maximum", "minimum")
def two_distinct(draw: Draw) -> Case:
    """Two arrays that broadcast and have no entry in common."""
    a, b = two_shapes(draw)
    cut = int(np.prod(a))
    values = draw.distinct(cut + int(np.prod(b)))
    return Case((values[:cut].reshape(a), values[cut:].reshape(b)))


@case("negative", "exp", "tanh", "sigmoid", "silu", "gelu")
def one_array(draw: Draw) -> Case:
    """Numbers of both signs."""
    return Case((draw.reals(*draw.shape()),))


@case("log", "sqrt", "rsqrt")
def one_positive(draw: Draw) -> Case:
    """Positive numbers."""
    return Case((draw.reals(*draw.shape(), low=0.3, high=3.0),))


@case("abs", "relu")
def one_with_a_kink(draw: Draw) -> Case:
    """Numbers of both signs, away from 0."""
    return Case((draw.reals(*draw.shape(), kinks=(0.0,)),))


@case("astype")
def astype(draw: Draw) -> Case:
    """To the format that the numbers have: a narrower one has no slope that differences could find."""
    return Case((draw.reals(*draw.shape()),), {"dtype": "float64"})


@case("where")
def where(draw: Draw) -> Case:
    """A mask, and two arrays that broadcast."""
    a, b = two_shapes(draw)
    mask = draw.reals(*np.broadcast_shapes(a, b)) > 0
    return Case((mask, draw.reals(*a), draw.reals(*b)))


@case("clip")
def clip(draw: Draw) -> Case:
    """Both bounds, or one."""
    low, high = draw.among((-0.5, 0.75), (None, 0.75), (-0.5, None))
    return Case((draw.reals(*draw.shape(), kinks=(-0.5, 0.75)),), {"low": low, "high": high})


def reduction(draw: Draw) -> dict:
    """Options of a reduction of an array of `shape`."""
    return {"axis": draw.among(-1, None, 0), "keepdims": draw.among(False, True)}


@case("sum", "mean", "logsumexp")
def reduced(draw: Draw) -> Case:
    """One axis or all."""
    return Case((draw.reals(*draw.shape()),), reduction(draw))


@case("var")
def var(draw: Draw) -> Case:
    """Both divisors, n and n - 1."""
    shape = tuple(size + 1 for size in draw.shape()) if draw.sizes is None else draw.shape()
    return Case((draw.reals(*shape),), {**reduction(draw), "ddof": draw.among(0, 1)})


@case("max", "min")
def extreme(draw: Draw) -> Case:
    """No ties."""
    return Case((draw.distinct(*draw.shape()),), reduction(draw))


@case("softmax", "log_softmax", "cumsum")
def along_an_axis(draw: Draw) -> Case:
    """Any axis."""
    shape = draw.shape()
    return Case((draw.reals(*shape),), {"axis": draw.axis(shape)})


@case("reshape")
def reshape(draw: Draw) -> Case:
    """All axes in front put together."""
    shape = draw.shape()
    return Case((draw.reals(*shape),), {"shape": (-1, shape[-1]) if draw.among(True, False) else -1})


@case("squeeze")
def squeeze(draw: Draw) -> Case:
    """An axis of size 1 in the middle."""
    shape = (*draw.lead(), 1, draw.size("d"))
    return Case((draw.reals(*shape),), {"axis": draw.among(-2, None)})


@case("expand_dims")
def expand_dims(draw: Draw) -> Case:
    """A new axis at either end."""
    return Case((draw.reals(*draw.shape()),), {"axis": draw.among(-1, 0)})


@case("transpose")
def transpose(draw: Draw) -> Case:
    """Three axes in any order."""
    axes = (1, 0, 2) if draw.sizes is not None else tuple(draw.random.permutation(3).tolist())
    return Case((draw.reals(draw.size("batch"), draw.size("time"), draw.size("d")),), {"axes": axes})


@case("broadcast_to")
def broadcast_to(draw: Draw) -> Case:
    """New axes in front, and stretched ones."""
    shape = draw.shape()
    return Case((draw.reals(*draw.part(shape)),), {"shape": shape})


@case("concatenate")
def concatenate(draw: Draw) -> Case:
    """Two or three arrays of different length."""
    lead = draw.lead()
    arrays = [draw.reals(*lead, draw.size("d")) for _ in range(draw.among(2, 3))]
    return Case(tuple(arrays), {"axis": -1})


@case("stack")
def stack(draw: Draw) -> Case:
    """Two or three arrays of one shape."""
    shape = draw.shape()
    return Case(tuple(draw.reals(*shape) for _ in range(draw.among(2, 3))), {"axis": draw.among(-1, 0)})


@case("split")
def split(draw: Draw) -> Case:
    """Two parts of different length."""
    size = draw.size("d", least=2)
    return Case((draw.reals(*draw.lead(), size),), {"sections": [size // 2], "axis": -1})


@case("pad")
def pad(draw: Draw) -> Case:
    """Zeros around, or in front alone."""
    return Case((draw.reals(*draw.shape()),), {"pad_width": draw.among(1, (2, 0))})


@case("getitem")
def getitem(draw: Draw) -> Case:
    """Rows by their numbers, repeats among them."""
    rows = draw.size("time")
    index = draw.integers(0, rows - 1, rows + 1)
    return Case((draw.reals(rows, draw.size("d")),), {"index": index})


@case("embedding")
def embedding(draw: Draw) -> Case:
    """Rows of a table, some read more than once."""
    rows = draw.size("vocab")
    shape = (3,) if draw.sizes and draw.sizes["vocab"] < 10 else (draw.size("batch"), draw.size("time"))
    return Case((draw.reals(rows, draw.size("d")), draw.integers(0, rows - 1, *shape)))


@case("take_along_axis")
def take_along_axis(draw: Draw) -> Case:
    """Entries of each row, some read more than once."""
    rows, size = draw.size("time"), draw.size("d")
    indices = draw.integers(0, size - 1, rows, draw.size("chosen"))
    return Case((draw.reals(rows, size), indices), {"axis": -1})


@case("scatter_add")
def scatter_add(draw: Draw) -> Case:
    """Updates, some to the same place."""
    rows, size, count = draw.size("time"), draw.size("d"), draw.size("chosen")
    indices = draw.integers(0, size - 1, rows, count)
    return Case((draw.reals(rows, size), indices, draw.reals(rows, count)), {"axis": -1})
