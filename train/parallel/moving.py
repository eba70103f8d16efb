"""Arrays that change their ranks: after experts are placed anew, their weights and moments go with them.

What a rank has is rows of named arrays, `m.model.norm.weight[0:16]`, as units are labelled; what is no rows
of anything, such as the number of steps, every rank has. From the lists of what all have and want each rank
reads off which rows go where, so that one exchange brings them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tinygrad_ds.device import Array, namespace, to_host
from train.parallel.communicator import Communicator
from train.parallel.units import parsed


class Rows(NamedTuple):
    """Rows `start` to `stop` - 1 of an array; whole arrays without rows in their key are row 0 of one."""

    base: str
    start: int
    stop: int


class Parcel(NamedTuple):
    """Rows that go from a rank to a rank."""

    rows: Rows
    source: int
    destination: int


def rows_in(key: str) -> Rows:
    """Of a key such as `m.model.norm.weight[0:16]`."""
    if "[" not in key:
        return Rows(key, 0, 1)
    kind, name, start, stop = parsed(key)
    return Rows(f"{kind}.{name}", start, stop)


def parcels(has: list[list[Rows]], wants: list[list[Rows]]) -> Iterator[Parcel]:
    """Which rows go where, the same list on every rank: from oneself where possible, else from the first that
    has them. has, wants: of every rank. Raises ValueError for rows that nobody has.
    """
    held: dict[str, list[tuple[int, Rows]]] = {}
    for rank, every in enumerate(has):
        for rows in every:
            held.setdefault(rows.base, []).append((rank, rows))
    for destination, every in enumerate(wants):
        for base, start, stop in every:
            nearest = sorted(held.get(base, []), key=lambda found: found[0] != destination)
            while start < stop:
                having = [found for found in nearest if found[1].start <= start < found[1].stop]
                if not having:
                    raise ValueError(f"no rank has row {start} of {base}, which rank {destination} needs")
                source, rows = having[0]
                end = min(stop, rows.stop)
                yield Parcel(Rows(base, start, end), source, destination)
                start = end


def move(ranks: Communicator, old: Mapping[str, Array], new: Mapping[str, Array]) -> int:
    """Fill the arrays of `new` from those that all ranks have in `old`; the bytes that came from others."""
    here, there = by_base(old), by_base(new)
    told = [rows_in(key) for key in old], [rows_in(key) for key in new]
    every = ranks.everybody(told, "what each rank has and needs of the experts")
    plan = list(parcels([has for has, _ in every], [wants for _, wants in every]))
    for rows, source, destination in plan:
        if source == destination == ranks.rank:
            piece(there, rows)[...] = piece(here, rows)
    others = [rank for rank in range(ranks.size) if rank != ranks.rank]
    sent = {r: [rows for rows, *way in plan if way == [ranks.rank, r]] for r in others}
    came = {r: [rows for rows, *way in plan if way == [r, ranks.rank]] for r in others}
    packed = {r: b"".join(to_host(piece(here, rows)).tobytes() for rows in some) for r, some in sent.items()}
    lengths = {r: sum(piece(there, rows).nbytes for rows in some) for r, some in came.items()}
    pending = ranks.exchange(
        np.frombuffer(b"".join(packed.values()), np.uint8),
        [len(packed.get(rank, b"")) for rank in range(ranks.size)],
        [lengths.get(rank, 0) for rank in range(ranks.size)],
        "the weights and moments of experts",
    )
    ranks.wait(pending)
    arrived, at = pending.buffers[1], 0
    for target in (piece(there, rows) for some in came.values() for rows in some):
        values = arrived[at : at + target.nbytes].view(target.dtype).reshape(target.shape)
        target[...] = namespace(target).asarray(values)
        at += target.nbytes
    return at


def by_base(arrays: Mapping[str, Array]) -> dict[str, list[tuple[Rows, Array]]]:
    """Arrays by what their rows are rows of."""
    found: dict[str, list[tuple[Rows, Array]]] = {}
    for key, array in arrays.items():
        rows = rows_in(key)
        found.setdefault(rows.base, []).append((rows, array))
    return found


def piece(arrays: Mapping[str, list[tuple[Rows, Array]]], rows: Rows) -> Array:
    """Those rows, in the memory of the array that has them; what is no rows of anything as it is."""
    for (_, start, stop), array in arrays[rows.base]:
        if start <= rows.start and rows.stop <= stop:
            return (
                array
                if rows.stop - rows.start == stop - start
                else array[rows.start - start : rows.stop - start]
            )
    raise KeyError(rows)
