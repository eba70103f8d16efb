"""The dependency graph of a schedule: what has to be done before a step can begin.

    F(s, m)    after F(s-1, m)
    B(s, m)    after B(s+1, m), at the last stage after F(s, m); I(s, m) likewise, and either stands for both
    W(s, m)    after I(s, m)

and every step after the one before it on its rank. The first three lines are the mathematics of a network cut
into stages; the last is the schedule, which says in what order a rank goes through its part of the graph.
"""

from collections import defaultdict

from train.pipeline.checker import check
from train.pipeline.steps import F, I, Schedule, Step, W

Places = defaultdict[int, dict[int, int]]  # [stage][micro-batch] -> number of the step


class Graph:
    """Steps numbered through all ranks, and what each waits for.

    ranks[step] is its rank, needs[step] what it waits for, unless its own rank has done that before; order is
    one in which all can run. A schedule that cannot run is refused with the reason.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.ranks = [rank for rank, steps in enumerate(schedule) for _ in steps]
        try:
            self.needs = self.find_needs(schedule)
        except KeyError:  # of a stage and micro-batch that has no such pass
            check(schedule)  # which says which
            raise
        self.order = self.run(schedule)
        if len(self.order) < len(self.ranks):
            check(schedule)

    def find_needs(self, schedule: Schedule) -> list[tuple[int, ...]]:
        """What every step waits for."""
        outputs: Places = defaultdict(dict)  # of the passes forward
        gradients: Places = defaultdict(dict)  # of the passes backward, or their first halves
        passes = halves = number = 0
        for steps in schedule:
            for step in steps:
                for stage, kind, microbatch in (step,) if isinstance(step, Step) else step:
                    if kind == F:
                        outputs[stage][microbatch] = number
                    elif kind != W:
                        gradients[stage][microbatch] = number
                        halves += kind == I
                    passes += 1
                number += 1
        if not 0 < passes - halves == 2 * size(outputs) == 2 * size(gradients):
            check(schedule)
        last = max(outputs)
        needs: list[tuple[int, ...]] = [()] * number
        begin = number = 0  # the first step of the rank, the present one
        for steps in schedule:
            for step in steps:
                for stage, kind, microbatch in (step,) if isinstance(step, Step) else step:
                    if kind == F:
                        other = outputs[stage - 1][microbatch] if stage else begin - 1
                    elif kind == W:
                        other = gradients[stage][microbatch]
                    elif stage == last:
                        other = outputs[stage][microbatch]
                    else:
                        other = gradients[stage + 1][microbatch]
                    if not begin <= other < number and (stage or kind != F):
                        needs[number] += (other,)
                number += 1
            begin = number
        return needs

    def run(self, schedule: Schedule) -> list[int]:
        """Each rank goes on until it has to wait, and is called when what it waits for is done."""
        needs = self.needs
        order: list[int] = []
        done = bytearray(len(needs))
        at, ends, number = [], [], 0
        for steps in schedule:
            at.append(number)
            number += len(steps)
            ends.append(number)
        waiting: dict[int, list[int]] = {}  # step -> the ranks that wait for it
        awake = list(range(len(ends)))
        while awake:
            rank = awake.pop()
            for step in range(at[rank], ends[rank]):
                for other in needs[step]:
                    if not done[other]:
                        break
                else:
                    done[step] = 1
                    order.append(step)
                    if step in waiting:
                        awake += waiting.pop(step)
                    continue
                waiting.setdefault(other, []).append(rank)
                at[rank] = step
                break
        return order


def size(places: Places) -> int:
    """Of how many stages and micro-batches the places are known."""
    return sum(map(len, places.values()))
