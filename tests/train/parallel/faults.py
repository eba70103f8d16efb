"""A run in which a rank meets a fault: `mpiexec -n 2 python -m tests.train.parallel.faults raise 1 3 FLAGS`.

The fault (raise, kill or sleep) comes at the beginning of a step. Others come where ranks meet: begin, before
MPI has begun; settings, before anything was said; meet, before a communicator is made; make, while it is;
late, for five seconds before it takes its part.
"""

import os
import signal
import sys
import time

from train import __main__ as program
from train.parallel import communicator, crew, launch
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

    def sleeps_before(usual, seconds=600):
        def late(*arguments, **options):
            if int(os.environ["PMI_RANK"]) == rank:
                time.sleep(seconds)
            return usual(*arguments, **options)

        return late

    Crew.gradients = gradients
    launch.START = 3.0
    if fault == "begin":
        launch.together = sleeps_before(launch.together)
    elif fault == "late":
        Crew.take = sleeps_before(Crew.take, 5)
    elif fault == "settings":
        crew.refuse_differences = sleeps_before(crew.refuse_differences)
    elif fault == "meet":
        communicator.Communicator.meet = sleeps_before(communicator.Communicator.meet)
    elif fault == "make":
        communicator.Communicator.watched = sleeps_before(communicator.Communicator.watched)
    program.main()


if __name__ == "__main__":
    main()
