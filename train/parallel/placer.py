"""The experts of all layers on their ranks: where they are, and where they should be by their loads."""

from collections.abc import Callable, Mapping

import numpy as np

from tinygrad_ds.device import to_host
from train.parallel.placement import (
    Hosts,
    Placement,
    busiest,
    check,
    kept_in_place,
    nodes_used,
    place_experts,
)

Loads = Mapping[str, np.ndarray]  # of every layer with experts, the tokens that each of them got


class Placer:
    """Placements by layer, alike on all ranks as the loads are. UserError for numbers that do not fit."""

    def __init__(self, hosts: Hosts, experts: int, n_group: int, say: Callable[[str], None]) -> None:
        check(experts, hosts, n_group)
        self.hosts, self.experts, self.n_group, self.say = hosts, experts, n_group, say
        self.placements: dict[str, Placement] = {}
        self.seen: dict[str, np.ndarray] = {}
        """The loads since experts were last placed."""

    def begin(self, layers: list[str], known: Loads) -> None:
        """Place the experts of all layers by the loads that are known, evenly where none are."""
        numbered = [each.tolist() for each in np.array_split(np.arange(self.experts), self.hosts.ranks)]
        for name in layers:
            load = known.get(name, np.ones(self.experts))
            self.placements[name] = place_experts(load, self.hosts, self.n_group)
            if known:
                before, now = busiest(load, numbered), busiest(load, self.placements[name])
                self.say(
                    f"{name}: the busiest rank gets {before:.2f} times the mean with experts as they are "
                    f"numbered, {now:.2f} as they are placed now"
                )

    def count(self, loads: Loads) -> None:
        """Remember the loads of one more step."""
        self.seen = {name: self.seen.get(name, 0) + to_host(load) for name, load in loads.items()}

    def busiest(self, loads: Loads) -> dict[str, float]:
        """Of every layer, the busiest rank's tokens over those of the average rank."""
        return {name: busiest(to_host(load), self.placements[name]) for name, load in loads.items()}

    def again(self) -> dict[str, Placement]:
        """Place experts by the loads since that was done last, and forget these; the placements that change:
        those of layers for which the new one is better.
        """
        changed, was, now = {}, [], []
        for name, load in self.seen.items():
            before = self.placements[name]
            placement = place_experts(load, self.hosts, self.n_group)
            if busiest(load, placement) < busiest(load, before):
                changed[name] = kept_in_place(placement, before, nodes_used(self.hosts, self.n_group))
                was.append(busiest(load, before))
                now.append(busiest(load, placement))
        if changed:
            self.say(
                f"experts of {len(changed)} of {len(self.seen)} layers change places: their busiest ranks "
                f"got {np.mean(was):.2f} times the mean of late and would have got {np.mean(now):.2f}"
            )
        self.placements |= changed
        self.seen = {}
        return changed
