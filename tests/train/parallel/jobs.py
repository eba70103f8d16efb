"""What tests have ranks do: `mpiexec -n 4 python -m tests.train.parallel.jobs out.pickle dualpipe ...`."""

import pickle
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layers import DeepSeekModel
from layers.module import hollow
from tests.train.tiny import CONFIG, tiny_rows
from train.config import Config, Parallel, Sizes
from train.learning_rate import Schedule
from train.muon import Muon
from train.optimizer import AdamW
from train.parallel.crew import Crew
from train.parallel.launch import together, world
from train.pipeline import checker
from train.team import Team
from train.trainer import State, Work, train

ROWS = 2  # in a micro-batch


@dataclass(frozen=True)
class Case:
    """A way to train, on some number of ranks or (`alone`) in one process."""

    ranks: int
    parallel: Parallel
    tied: bool = False
    steps: int = 1
    muon: bool = False
    mtp_weight: float = 0.3
    recompute: bool = False
    experts: int = CONFIG.n_routed_experts

    @property
    def layers(self) -> int:
        """One more than there are stages, so that they are cut unevenly."""
        if self.parallel.pipeline == "none":
            return 2
        ranks = self.parallel.pipeline_ranks or self.ranks
        return (2 if self.parallel.pipeline == "dualpipe_v" else 1) * ranks + 1

    @property
    def model(self) -> DeepSeekModel:
        """The network, hollow, in float64, its weights large so that no gradient is lost in rounding."""
        config = CONFIG.replace(
            num_hidden_layers=self.layers,
            n_routed_experts=self.experts,
            tie_word_embeddings=self.tied,
            initializer_range=0.2,
        )
        with hollow():
            return DeepSeekModel(config, seed=None, dtype="float64")

    def fill(self, part: DeepSeekModel) -> None:
        """Draw the weights of the network or of a part of it."""
        part.initialize(seed=0)

    def optimizer(self, model: Any) -> Any:
        """Of the kind that is asked for."""
        return Muon(model, lr=0.01) if self.muon else AdamW(model, lr=0.003)

    def next_work(self, model: DeepSeekModel):
        """As many micro-batches as the most demanding schedule needs; the batch depends on the step alone."""

        def work(state: State) -> Work:
            ids, targets = tiny_rows(2 * self.ranks * ROWS, seed=state.step)
            parts = [(ids[i : i + ROWS], targets[i : i + ROWS]) for i in range(0, len(ids), ROWS)]
            return Work(parts, sum(model.count_targets(part[1]) for part in parts), 1.0)

        return work

    def loss(self, model: DeepSeekModel, part: Any, count: Any):
        """All its parts, as a run has them."""
        losses = model.losses(*part, self.mtp_weight if model.mtp else 0.0, 0.1, count=count)._asdict()
        total = losses.pop("total")
        return total, {name: float(value) for name, value in losses.items() if value is not None}

    @property
    def config(self) -> Config:
        """The settings of a run that would be this."""
        sizes = Sizes(num_hidden_layers=self.layers, n_routed_experts=self.experts, n_group=CONFIG.n_group)
        schedule = Schedule(batch=2 * self.ranks * ROWS, first_batch=0)
        return Config(
            micro_batch=ROWS, sizes=sizes, schedule=schedule, parallel=replace(self.parallel, trace_step=0)
        )


def go(case: Case, team: Team) -> dict[str, Any]:
    """Train; what every rank has seen, and its parts of the gradient of the first step by name."""
    model = case.model
    model.recompute = case.recompute and isinstance(team, Crew)
    team.take(model, case.optimizer, case.fill)
    records, gradients = [], {}

    def see(state, record):
        records.append(record)
        if state.step == 1:
            units = team.replicas.counted() if isinstance(team, Crew) else []
            gradients.update({unit.label: unit.grad.copy() for unit in units if unit.grad is not None})
            if not isinstance(team, Crew):
                gradients.update({k: v.grad for k, v in team.model.named_parameters() if v.grad is not None})

    train(
        team.model,
        team.optimizer,
        case.next_work(team.model),
        case.loss,
        State(total=case.steps),
        learning_rate=lambda state: 0.003,
        clip=1e9,
        clip_gradients=team.clip,
        bias_speed=lambda state: 1e-3,
        gradients=team.gradients,
        after=team.after([see], list),
    )
    return {"records": records, "gradients": gradients}


def named(pieces: list[dict[str, np.ndarray]], model: DeepSeekModel) -> dict[str, np.ndarray]:
    """Gradients by published name from those of units, `name[start:stop]`."""
    whole = {}
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    for piece in pieces:
        for label, grad in piece.items():
            name, rows = label.removesuffix("]").split("[")
            start, stop = map(int, rows.split(":"))
            target = whole.setdefault(name, np.full(shapes[name], np.nan))
            assert np.isnan(target[start:stop]).all(), f"{label} is counted twice"
            target[start:stop] = grad
    return whole


def measure(case: Case, ranks: Any) -> dict[str, Any]:
    """On rank 0: losses, gradients, weights and the optimizer's state at the end, and what ranks count."""
    ranks.trace.sent = 0
    crew = Crew(case.config, ranks, print)
    ranks.trace.restart()
    ranks.trace.recording = case.parallel.expert_ranks > 1
    seen = go(case, crew)
    ranks.trace.recording = False
    sent = ranks.trace.sent
    crew.fetch(moments=True)
    fetched = ranks.trace.sent - sent
    copies = {part.name: part.data.tobytes() for part in crew.model.published()}
    moments = sum(array.nbytes for array in crew.optimizer.inner.state_dict().values())
    told = (seen["gradients"], copies, crew.executor.most_alive, moments, ranks.trace, fetched)
    every = ranks.everybody(told, "the results of a test")
    together = [each for _, each, *_ in every]
    layout = crew.layout
    lists = layout.schedule(layout.length, 2 * case.ranks // layout.lines)
    return {
        "losses": [{k: v for k, v in r.items() if isinstance(v, float)} for r in seen["records"]],
        "loads": [record["loads"] for record in seen["records"]],
        "gradients": named([each[0] for each in every], case.model),
        "weights": {part.name: part.data for part in crew.whole.published()},
        "state": crew.whole_optimizer.state_dict(),
        "alike": all(a[name] == b[name] for a in together for b in together for name in a.keys() & b.keys()),
        "alive": [each[2] for each in every],
        "planned": checker.check(lists).alive * layout.lines,
        "moments": [each[3] for each in every],
        "fetched": sum(each[5] for each in every),
        "sent": [each[4].sent for each in every],
        "traces": [each[4] for each in every],
        "placements": crew.placer.placements,
    }


def alone(case: Case) -> dict[str, Any]:
    """The same in one process."""
    team = Team()
    seen = go(case, team)
    return {
        "losses": [{k: v for k, v in r.items() if isinstance(v, float)} for r in seen["records"]],
        "loads": [record["loads"] for record in seen["records"]],
        "gradients": seen["gradients"],
        "weights": {part.name: part.data for part in team.model.published()},
        "state": team.optimizer.state_dict(),
    }


def cases(ranks: int) -> dict[str, Case]:
    """What is compared with one process, on that many ranks."""
    pipelines = ("gpipe", "one_f_one_b", "zb1p", "dualpipe", "dualpipe_v")
    found = {name: Case(ranks, Parallel(pipeline=name)) for name in pipelines}
    found["dualpipe, tied"] = Case(ranks, Parallel(pipeline="dualpipe"), tied=True)
    found["one_f_one_b, tied"] = Case(ranks, Parallel(pipeline="one_f_one_b"), tied=True)
    found["dualpipe, shares"] = Case(ranks, Parallel(pipeline="dualpipe", shard_optimizer=True))
    found["dualpipe, Muon, shares"] = replace(found["dualpipe, shares"], muon=True)
    found["data"] = Case(ranks, Parallel())
    found["data, shares"] = Case(ranks, Parallel(shard_optimizer=True))
    found["data, Muon, shares"] = replace(found["data, shares"], muon=True)
    found["experts"] = Case(ranks, Parallel(expert_ranks=2))
    found["experts, copies, shares"] = Case(
        ranks, Parallel(expert_ranks=2, redundant_experts=2, shard_optimizer=True)
    )
    found["no MTP loss"] = Case(ranks, Parallel(pipeline="one_f_one_b"), mtp_weight=0.0)
    for name in ("zb1p", "dualpipe"):
        found[f"{name}, recomputed"] = replace(found[name], recompute=True)
    again = Case(ranks, Parallel(expert_ranks=2, place_every=2), steps=5, experts=8)
    found["experts placed again"] = again
    shares = Parallel(expert_ranks=2, redundant_experts=2, shard_optimizer=True, place_every=1)
    found["experts placed again, copies, shares"] = replace(again, parallel=shares, steps=3)
    found["experts placed again, Muon, shares"] = replace(again, parallel=shares, steps=3, muon=True)
    if ranks >= 4:
        both = Parallel(pipeline="dualpipe", pipeline_ranks=2, expert_ranks=2)
        found["pipeline x experts"] = Case(ranks, both)
        found["pipeline x experts, copies, shares"] = Case(
            ranks, replace(both, redundant_experts=2, shard_optimizer=True)
        )
        found["pipeline x experts placed again"] = replace(
            found["experts placed again, copies, shares"], parallel=replace(both, place_every=1)
        )
        found["pipeline x data, shares"] = Case(
            ranks, replace(both, pipeline="zb1p", expert_ranks=1, shard_optimizer=True)
        )
        found["experts on nodes"] = Case(ranks, Parallel(expert_ranks=4, expert_nodes=2))
    if ranks >= 8:
        found["pipeline x experts x data, copies, shares"] = Case(
            ranks, replace(both, redundant_experts=2, shard_optimizer=True), steps=3
        )
    found["dualpipe, 50 steps"] = replace(found["dualpipe"], steps=50)
    return found


def main() -> int:
    """The cases that are named; the results of rank 0 into a file."""
    ranks, path, *names = world(), *sys.argv[1:]
    chosen = {name: cases(ranks.size)[name] for name in names}
    results = {name: measure(case, ranks) for name, case in chosen.items()}
    if ranks.rank == 0:
        with open(path, "wb") as file:
            pickle.dump(results, file)
    return 0


if __name__ == "__main__":
    sys.exit(together(main))
