"""How good are the gradient tests? Change the derivatives one slip at a time, and see what the tests say.

python -m tests.mutation                         every backward function, ops and kernels
python -m tests.mutation --where ops --only norm       only what has `norm` in its name
python -m tests.mutation --sample 100 --seed 0   some of them, the same each time
python -m tests.mutation --keep FILE             writes down what it finds; killed ones are not tried again

Exit code 1 if a mutant survives that equivalents.txt does not list.
"""

import argparse
import random
import sys
from pathlib import Path
from time import monotonic

from tests.mutation import record
from tests.mutation.equivalents import reason
from tests.mutation.report import details, survivors, table
from tests.mutation.targets import Mutant, mutants, targets
from tests.mutation.worker import Outcome, run


def chosen(where: str, only: list[str], sample: int | None, seed: int) -> list[Mutant]:
    """The mutants that are asked for, in the order of files."""
    found = [mutant for target in targets(where) for mutant, _ in mutants(target)]
    found = [mutant for mutant in found if not only or any(part in mutant.name for part in only)]
    if sample is not None and sample < len(found):
        kept = sorted(random.Random(seed).sample(range(len(found)), sample))
        found = [found[place] for place in kept]
    return found


def trial(
    asked: list[Mutant], workers: int, limit: float, say: bool = True, keep: Path | None = None
) -> list[Outcome]:
    """Try the mutants that are not listed as equivalent, nor killed before; a survivor is told at once."""
    began = monotonic()
    outcomes = [Outcome(mutant, "survived", "", 0.0) for mutant in asked if reason(mutant.name)]
    waiting = [mutant for mutant in asked if not reason(mutant.name)]
    if keep is not None:
        outcomes += (before := record.killed_before(keep, waiting))
        done = {each.mutant for each in before}
        waiting = [mutant for mutant in waiting if mutant not in done]
    for outcome in run(waiting, workers, limit):
        outcomes.append(outcome)
        if keep is not None:
            record.add(keep, outcome)
        if say and survivors([outcome]):
            print(f"survived: {outcome.mutant.name}", flush=True)
        if say and len(outcomes) % 100 == 0:
            print(f"{len(outcomes)} of {len(asked)}, {monotonic() - began:.0f} s", flush=True)
    return outcomes


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--where", choices=("ops", "kernels", "all"), default="all")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="mutants whose name holds one of these"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, default=90.0, metavar="SECONDS", help="of the processor, for one mutant"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="go on where the run that wrote it stopped")
    parser.add_argument("--list", action="store_true", help="print the names of the mutants, try none")
    asked = parser.parse_args()
    found = chosen(asked.where, asked.only, asked.sample, asked.seed)
    if not found:
        parser.error(f"no mutant has {' or '.join(asked.only)!r} in its name: --list shows them all")
    if asked.list:
        print("\n".join(mutant.name for mutant in found))
        return
    began = monotonic()
    outcomes = trial(found, asked.workers, asked.limit, keep=asked.keep)
    print(f"\n{table(outcomes)}\n\n{details(outcomes)}\n\n{monotonic() - began:.0f} s")
    sys.exit(1 if survivors(outcomes) else 0)


if __name__ == "__main__":
    main()
