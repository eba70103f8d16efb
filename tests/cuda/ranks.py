"""What a test has two ranks do on the device: `mpiexec -n 2 python -m tests.cuda.ranks OUT`."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.train.parallel.jobs import cases
from tinygrad_ds.device import device_of, place, to_host
from train.parallel.communicator import Communicator
from train.parallel.crew import Crew
from train.parallel.launch import world
from train.trainer import State, train

CASES = ("data", "one_f_one_b", "experts", "experts placed again, copies, shares")


def main() -> None:
    """Messages of every kind, then steps of training; rank 0 writes what came of it."""
    ranks = world()
    found = {"messages": messages(ranks)} | {name: trained(name, ranks) for name in CASES}
    everything = ranks.everybody(found, "the results of a test")
    if ranks.rank == 0:
        Path(sys.argv[1]).write_bytes(pickle.dumps(everything))


def messages(ranks: Communicator) -> dict[str, Any]:
    """Each kind of exchange with arrays of the device, as NumPy arrays; and where they were."""
    me, other = ranks.rank, 1 - ranks.rank
    mine = place(np.arange(6.0).reshape(2, 3) + 10 * me)
    into = place(np.zeros((2, 3)))
    coming = ranks.receive(into, other, 1, "numbers")
    going = ranks.send(mine.T.copy().T, other, 1, "numbers")
    ranks.wait(coming)
    ranks.wait(going)
    rows = ranks.exchange(place(np.arange(8.0).reshape(4, 2) + 10 * me), [1, 3], [[1, 1], [3, 3]][me], "rows")
    ranks.wait(rows)
    nothing = ranks.exchange(place(np.zeros((0, 2))), [0, 0], [0, 0], "no rows")
    ranks.wait(nothing)
    arrays = {
        "sent": into,
        "sum": ranks.add_up(mine, "a sum"),
        "piece": ranks.add_up_pieces(mine.reshape(-1), [2, 4], "pieces"),
        "whole": ranks.join_pieces(mine.reshape(-1)[: 2 + me], [2, 3], "a whole"),
        "rows": rows.buffers[1],
        "nothing": nothing.buffers[1],
    }
    return {"where": {device_of(array) for array in arrays.values()}} | {
        name: to_host(array) for name, array in arrays.items()
    }


def trained(name: str, ranks: Communicator) -> dict[str, np.ndarray]:
    """The weights of the whole network after two steps."""
    case = cases(2)[name]
    crew = Crew(case.config, ranks, lambda line: None)
    crew.take(case.model, case.optimizer, case.fill)
    train(
        crew.model,
        crew.optimizer,
        case.next_work(crew.model),
        case.loss,
        State(total=2),
        learning_rate=lambda state: 0.003,
        clip=1e9,
        clip_gradients=crew.clip,
        gradients=crew.gradients,
        after=crew.after([], list),
    )
    crew.fetch(moments=True)
    return {part.name: to_host(part.data) for part in crew.whole.published()}


if __name__ == "__main__":
    main()
