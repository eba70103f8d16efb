"""Where experts live: on which rank each of them, and which of them twice, so that ranks are equally busy.

The load of an expert is the tokens that chose it; where it has several copies each takes an equal share. As
in DeepSeek's balancer for expert parallelism (EPLB): groups of experts are packed onto nodes, since a token
goes to few groups and so reaches few nodes; within a node the busiest experts get a copy; and the copies are
packed onto the node's ranks. Packing is greedy: the heaviest first, each to where least is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.errors import UserError

Placement = list[list[int]]  # for every rank the experts that it holds


class Hosts(NamedTuple):
    """The ranks among which experts are placed: `nodes` of equally many, and room for copies on them."""

    ranks: int
    nodes: int = 1
    redundant: int = 0  # copies beyond the first, over all ranks


def place_experts(loads: np.ndarray, hosts: Hosts, n_group: int = 1) -> Placement:
    """loads (E,) -> for every rank its experts, equally many, rising. UserError where that cannot be.

    Where the groups cannot be shared evenly by the nodes, all ranks count as one node.
    """
    check(len(loads), hosts, n_group)
    size = len(loads) // n_group
    groups = loads.reshape(n_group, size).sum(axis=1)
    placement: Placement = []
    nodes = pack(groups, nodes_used(hosts, n_group))
    ranks, redundant = hosts.ranks // len(nodes), hosts.redundant // len(nodes)
    for node in nodes:
        held = [group * size + i for group in sorted(node) for i in range(size)]
        copies = replicate(loads[held], redundant, limit=ranks)
        kinds = [e for e, times in zip(held, copies) for _ in range(times)]
        share = np.array([loads[e] / times for e, times in zip(held, copies) for _ in range(times)])
        packs = pack(share, ranks, kinds)
        placement += [sorted(kinds[i] for i in items) for items in packs]
    return placement


def kept_in_place(placement: Placement, before: Placement, nodes: int) -> Placement:
    """The same packs of experts, each with a rank that holds much of it already, so that little moves.

    Ranks of a node change places with one another, and whole nodes with whole nodes.
    """
    size = len(placement) // nodes
    new, old = ([ranks[i : i + size] for i in range(0, len(ranks), size)] for ranks in (placement, before))
    together = [[[e for rank in node for e in rank] for node in each] for each in (new, old)]
    settled: Placement = []
    for i, node in zip(matched(*together), old):
        settled += [new[i][j] for j in matched(new[i], node)]
    return settled


def matched(new: Placement, old: Placement) -> list[int]:
    """For every pack of `old` one of `new`, each once: those with most in common find each other first."""
    common = {(i, j): len(set(a) & set(b)) for i, a in enumerate(old) for j, b in enumerate(new)}
    found: dict[int, int] = {}
    for i, j in sorted(common, key=lambda pair: (-common[pair], pair)):
        if i not in found and j not in found.values():
            found[i] = j
    return [found[i] for i in range(len(old))]


def nodes_used(hosts: Hosts, n_group: int) -> int:
    """The nodes among which groups are shared; 1 where that is impossible."""
    return hosts.nodes if n_group % hosts.nodes == 0 else 1


def check(experts: int, hosts: Hosts, n_group: int) -> None:
    """Raise UserError for numbers that do not go into each other."""
    slots = experts + hosts.redundant
    if slots % hosts.ranks:
        raise UserError(
            f"{experts} experts and {hosts.redundant} copies make {slots}, which {hosts.ranks} ranks cannot "
            f"share evenly: change expert_ranks or redundant_experts"
        )
    if hosts.ranks % hosts.nodes:
        raise UserError(f"{hosts.ranks} ranks with experts cannot be {hosts.nodes} equal nodes")
    most = experts * (hosts.ranks // nodes_used(hosts, n_group) - 1)
    if hosts.redundant > most:
        raise UserError(
            f"redundant_experts is {hosts.redundant}, but a rank has each of {experts} experts once, and "
            f"only those of its node: at most {most}"
        )


def replicate(loads: np.ndarray, redundant: int, limit: int) -> list[int]:
    """How many copies of each: one more, each time, of that whose copies are busiest; at most `limit`."""
    copies = np.ones(len(loads), dtype=int)
    for _ in range(redundant):
        busy = np.where(copies < limit, (loads + 1e-9) / copies, -1.0)
        copies[busy.argmax()] += 1
    return copies.tolist()


def pack(weights: np.ndarray, packs: int, kinds: Sequence[int] | None = None) -> list[list[int]]:
    """Items into packs of equally many, about equally heavy; never two of one kind in one pack."""
    kinds = list(range(len(weights))) if kinds is None else kinds
    room = len(weights) // packs
    items: list[list[int]] = [[] for _ in range(packs)]
    filled = [0.0] * packs
    # Kinds with many copies first, among equals, since they need many packs that have none of them.
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], -kinds.count(kinds[i]), i))
    for i in order:
        held = [{kinds[j] for j in pack} for pack in items]
        open_packs = [p for p in range(packs) if len(items[p]) < room]
        free = [p for p in open_packs if kinds[i] not in held[p]]
        if not free:
            # All packs with room have this kind: one of them takes an item of a full pack, which takes this.
            p = min(open_packs, key=filled.__getitem__)
            q, j = next(
                (q, j)
                for q in range(packs)
                if kinds[i] not in held[q]
                for j in reversed(items[q])
                if kinds[j] not in held[p]
            )
            items[q].remove(j)
            items[p].append(j)
            filled[q] -= weights[j]
            filled[p] += weights[j]
            free = [q]
        p = min(free, key=filled.__getitem__)
        items[p].append(i)
        filled[p] += weights[i]
    return items


def rank_loads(loads: np.ndarray, placement: Placement) -> np.ndarray:
    """(ranks,): the tokens that each rank's experts get."""
    copies = np.bincount([e for experts in placement for e in experts], minlength=len(loads))
    return np.array([sum(loads[e] / copies[e] for e in experts) for experts in placement])


def busiest(loads: np.ndarray, placement: Placement) -> float:
    """The busiest rank's tokens over those of the average rank; 1 is even."""
    each = rank_loads(loads, placement)
    return float(each.max() / max(each.mean(), 1e-9))
