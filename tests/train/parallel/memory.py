"""What a rank needs to take its part: `mpiexec -n 2 python -m tests.train.parallel.memory OUT TOML [FROM]`.

TOML has the settings of a run, FROM is a checkpoint. Rank 0 writes, for each rank, the bytes of what it
holds, the highest number of bytes that Python and NumPy had at once, and by how much the process grew.
"""

import pickle
import resource
import sys
import tracemalloc
from functools import partial
from pathlib import Path

from layers import DeepSeekModel
from layers.module import hollow
from train.checkpoint import load_state, open_model
from train.config import Config
from train.optimizer import AdamW
from train.parallel.crew import Crew
from train.parallel.launch import together, world


def main() -> int:
    """Take the network of a run as `run.start` does, or `run.resume`, and count."""
    ranks, (_, path, settings, *checkpoint) = world(), sys.argv
    config = Config.load(Path(settings))
    sizes = config.sizes.deepseek(config.sizes.vocab_size, config.time, 0)
    crew = Crew(config, ranks, print)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    if checkpoint:
        model, fill = open_model(Path(*checkpoint))
    else:
        with hollow():
            model = DeepSeekModel(sizes, seed=None)
        fill = partial(DeepSeekModel.initialize, seed=config.seed)
    crew.take(model, lambda model: AdamW(model, lr=0.1), fill)
    if checkpoint:
        load_state(Path(*checkpoint), crew.whole_optimizer)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = [leaf.data.nbytes for leaf in crew.model.parameters()]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    every = ranks.everybody(
        {
            "weights": sum(held),
            "largest": max(part.data.nbytes for part in crew.model.published()),
            "moments": sum(array.nbytes for array in crew.optimizer.inner.state_dict().values()),
            "most": most,
            "grown": 1024 * grown,
        },
        "the results of a test",
    )
    if ranks.rank == 0:
        with open(path, "wb") as file:
            pickle.dump(every, file)
    return 0


if __name__ == "__main__":
    sys.exit(together(main))
