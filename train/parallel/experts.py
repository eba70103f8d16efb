"""Expert parallelism: every rank holds some experts, and rows travel to the experts of their tokens.

    attention | dispatch: choose, sort rows, send | experts: feed forward | combine: send back, add up

Rows go by all-to-all, forward and backward, and nobody waits for them without doing something else: see
train/pipeline/interleave.py.
"""

from collections.abc import Iterator, Mapping

import numpy as np

import tinygrad_ds as tg
from layers.module import Part, parameter
from layers.moe import Experts, MoE
from layers.precision import products
from tinygrad_ds import Tensor
from tinygrad_ds.device import here, namespace, place, to_host
from tinygrad_ds.ops.experts import expert_order
from train.parallel.communicator import Communicator
from train.parallel.placement import Placement
from train.pipeline.interleave import Exchange, Interleaver


class PlacedExperts(Experts):
    """The experts of one layer that a rank holds, of the sizes of `like`, still to be written; called as all
    experts would be.
    """

    def __init__(
        self, like: Experts, layer: int, placement: Placement, ranks: Communicator, interleaver: Interleaver
    ) -> None:
        self.layer, self.placement, self.ranks, self.interleaver = layer, placement, ranks, interleaver
        self.width = like.width
        self.held = placement[ranks.rank]
        self.slots = len(self.held)  # the same on every rank
        hidden = like.down_proj.shape[1]
        self.gate_up_proj = parameter((self.slots, 2 * self.width, hidden), like.gate_up_proj.dtype)
        self.down_proj = parameter((self.slots, hidden, self.width), like.down_proj.dtype)
        flat = np.array([e for experts in placement for e in experts])
        copies = np.bincount(flat)
        self.count = len(copies)
        # (E, most copies): the slots of each expert over all ranks, the last ones repeated
        slots = [np.flatnonzero(flat == e) for e in range(self.count)]
        self.homes = np.stack([np.resize(each, copies.max()) for each in slots])
        self.copies = copies  # (E,)

    def __call__(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """sum_k weights[n, k] FFN_{indices[n, k]}(x[n]), whoever has that expert. x (tokens, hidden)."""
        ranks, interleaver = self.ranks, self.interleaver
        slots = place(self.choose_copies(to_host(indices.data)))  # (tokens, K)
        total = self.slots * ranks.size
        sent = tg.dispatch(x, slots, num_experts=total)  # rows sorted by rank, slot and token
        counts = np.diff(to_host(sent.offsets.data))  # (ranks slots,)
        what = f"the numbers of rows for the experts of layer {self.layer}"
        table = ranks.join_pieces(counts, [total] * ranks.size, what).reshape(ranks.size, ranks.size, -1)
        outgoing, incoming = table[ranks.rank].sum(axis=1), table[:, ranks.rank].sum(axis=1)

        there = Exchange(f"experts {self.layer}", ranks, outgoing.tolist(), incoming.tolist())
        rows = interleaver.exchange(sent.rows, there)  # from all ranks, sorted by rank and slot
        rows = self.feed_forward(rows, table[:, ranks.rank])
        back = Exchange(f"combine {self.layer}", ranks, incoming.tolist(), outgoing.tolist())
        rows = interleaver.exchange(rows, back)
        return tg.combine(rows, weights, sent.position)

    def choose_copies(self, indices: np.ndarray) -> np.ndarray:
        """The slots for the experts of `indices` (tokens, K): tokens take an expert's copies in turn."""
        turn = (np.arange(len(indices))[:, None] + self.ranks.rank) % self.copies[indices]
        return self.homes[indices, turn]

    def feed_forward(self, rows: Tensor, counts: np.ndarray) -> Tensor:
        """FFN of every row by its expert. rows (M, hidden) in the order of counts (ranks, slots)."""
        xp = namespace(rows.data)
        slots = np.repeat(np.tile(np.arange(self.slots), len(counts)), counts.reshape(-1))
        offsets, position = expert_order(xp.asarray(slots)[:, None], num_experts=self.slots)
        one = Tensor(here().ones((len(slots), 1), dtype=rows.dtype))
        multiply = products()
        gate_up = multiply.experts_in(rows, self.gate_up_proj, position, offsets)  # (M, 2 width)
        return multiply.experts_out(gate_up, one, self.down_proj, position, offsets)

    def published(self, path: str = "") -> Iterator[Part]:
        """Three matrices for every expert that is here, under the expert's own number."""
        gate, up = slice(0, self.width), slice(self.width, 2 * self.width)
        for slot, e in enumerate(self.held):
            yield Part(f"{path}{e}.gate_proj.weight", self.gate_up_proj, (slot, gate))
            yield Part(f"{path}{e}.up_proj.weight", self.gate_up_proj, (slot, up))
            yield Part(f"{path}{e}.down_proj.weight", self.down_proj, slot)


def spread(
    moes: Mapping[str, MoE],
    placements: Mapping[str, Placement],
    ranks: Communicator,
    interleaver: Interleaver,
) -> None:
    """Have in each mixture that is placed only the experts that this rank holds, still to be written."""
    for name in moes.keys() & placements.keys():
        moe, layer = moes[name], int(name.split(".")[2])
        moe.experts = PlacedExperts(moe.experts, layer, placements[name], ranks, interleaver)
