"""A run in which a rank meets a fault: `mpiexec -n 2 python -m tests.train.parallel.faults raise 1 3 FLAGS`.

The fault (raise, kill or sleep) comes at the beginning of a step.
"""

import os
import signal
import sys
import time

from train import __main__ as program
from train.parallel.crew import Crew


def main() -> None:
    """Run the program with a fault in it."""
    fault, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv[1:] = sys.argv[4:]
    usual = Crew.gradients

    def gradients(self, model, work, loss, state):
        if self.ranks.rank == rank and state.step + 1 == step:
            if fault == "raise":
                raise RuntimeError("the fault of this test")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return usual(self, model, work, loss, state)

    Crew.gradients = gradients
    program.main()


if __name__ == "__main__":
    main()
