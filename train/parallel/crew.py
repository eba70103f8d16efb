"""Several ranks as one who trains: a part of the network on each, their gradients, their judge and scribe."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from layers import DeepSeekModel, decoding
from layers.module import hollow
from tinygrad_ds.device import Array
from train.checkpoint import SaveEvery
from train.config import Config, Parallel
from train.errors import UserError
from train.parallel.communicator import Communicator
from train.parallel.experts import spread
from train.parallel.launch import under_mpiexec, world
from train.parallel.layout import Layout, check_batches, make_layout
from train.parallel.moving import move
from train.parallel.placement import Hosts, Placement
from train.parallel.placer import Placer
from train.parallel.replicas import Replicas, ShareOptimizer
from train.parallel.units import Shard, name_of, of_shard, places, to_whole, whole_units
from train.pipeline.executor import Executor
from train.pipeline.interleave import Interleaver
from train.pipeline.measured import recorded, write_charts
from train.pipeline.stage import Stage
from train.team import Hook, Team
from train.trainer import Loss, Record, State, Work


def make_team(config: Config, say: Callable[[str], None]) -> Team:
    """This process alone, or as one rank of those that mpiexec started. Raises UserError."""
    if under_mpiexec():
        ranks = world()
        ranks.post.patience = config.parallel.timeout
        refuse_differences(config, ranks)
        return Crew(config, ranks, say)
    if config.parallel != Parallel():
        raise UserError(
            f"pipeline is {config.parallel.pipeline} and expert_ranks {config.parallel.expert_ranks}, but "
            "there is one process alone: start several by `mpiexec -n 4 python -m train ...`"
        )
    return Team()


def refuse_differences(config: Config, ranks: Communicator) -> None:
    """Raise UserError unless all ranks have the settings of rank 0."""
    settings = flat(asdict(config))
    first, *others = ranks.everybody(settings, "the settings of all ranks")
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UserError(
                    f"{name} is {value} on rank 0 but {other.get(name)} on rank {rank}: start all ranks with "
                    "the same settings"
                )


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one table: their names are different anyhow."""
    flattened: dict[str, Any] = {}
    for name, value in table.items():
        flattened |= flat(value) if isinstance(value, Mapping) else {name: value}
    return flattened


class WholeOptimizer:
    """The state of all ranks' optimizers as one process would have it."""

    def __init__(self, crew: "Crew") -> None:
        self.crew = crew
        self.state: dict[str, np.ndarray] = {}

    def state_dict(self) -> dict[str, np.ndarray]:
        """As `Crew.fetch` last collected it, on the rank that speaks."""
        return self.state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Give this rank its own. UserError where that is missing or does not fit."""
        inner = self.crew.optimizer.inner
        inner.load_state_dict(of_shard(inner.state_dict(), state, self.crew.places))


class Crew(Team):
    """One rank among all. Raises UserError, on all of them, where the settings do not fit their number."""

    def __init__(self, config: Config, ranks: Communicator, say: Callable[[str], None]) -> None:
        super().__init__()
        self.config, self.ranks, self.say = config, ranks, say
        self.layout: Layout = make_layout(config.parallel, ranks.rank, ranks.size)
        self.layout.stages(config.sizes.num_hidden_layers)
        settings = config.parallel
        hosts = Hosts(settings.expert_ranks, settings.expert_nodes, settings.redundant_experts)
        self.placer = Placer(hosts, config.sizes.n_routed_experts, config.sizes.n_group, say)
        check_batches(config, self.layout)
        self.speaks = ranks.rank == 0
        self.steps = 0  # of this session
        self.loads: dict[str, np.ndarray] = {}

    def first_alone(self, work: Callable[[], Any], what: str) -> Any:
        """What `work` returned on rank 0."""
        return self.ranks.first_alone(work, what)

    def in_turn(self, work: Callable[[], Any], what: str) -> Any:
        """What `work` returns on this rank, after rank 0."""
        return self.ranks.in_turn(work, what)

    def take(
        self,
        model: DeepSeekModel,
        make_optimizer: Callable[[Any], Any],
        fill: Callable[[DeepSeekModel], Any] = lambda model: None,
    ) -> None:
        """Take over this rank's part of a hollow network, which is made and filled here, and nothing else."""
        ranks, layout = self.ranks, self.layout
        with ranks.patient():
            ranks.everybody(None, "all to have read what they need")
        interleaver = self.interleaver = Interleaver(ranks)
        self.places = places(model)
        split = layout.stages(len(model.layers))
        held = [layer for layers in split.values() for layer in layers]
        self.model = Stage(model, held, interleaver)
        if self.placer.hosts.ranks > 1:
            known = ranks.from_first(self.remembered, "the loads of experts")  # all must place alike
            self.placer.begin([*model.moe_layers()], known)
            self.spread(self.placer.placements)
        self.model.allocate()
        fill(self.model)
        with ranks.patient():
            ranks.everybody(None, "the network to be ready")
        stages = {stage: Stage(model, layers, interleaver) for stage, layers in split.items()}
        self.executor = Executor(stages, layout.schedule, ranks.part(layout.mates()), interleaver)
        self.replicas = Replicas(self.model, ranks, sharded=self.config.parallel.shard_optimizer)
        self.make_optimizer = make_optimizer
        self.optimizer = ShareOptimizer(self.optimizer_of_units(), self.replicas)
        self.whole, self.whole_optimizer = self.model, WholeOptimizer(self)
        if self.speaks:
            with hollow():
                self.whole = DeepSeekModel(model.config, seed=None, dtype=model.dtype.name)
        self.tell_bytes()

    def optimizer_of_units(self) -> Any:
        """A new optimizer of what this rank steps."""
        return self.make_optimizer(Shard(self.model, self.replicas.stepped()))

    def tell_bytes(self) -> None:
        """Say how much of the network, and of the optimizer's state, a rank holds."""
        weights = sum(leaf.data.nbytes for leaf in self.model.parameters())
        moments = sum(array.nbytes for array in self.optimizer.inner.state_dict().values())
        held = self.ranks.everybody((weights, moments), "the bytes that ranks hold")
        for what, each in zip(("weights", "the optimizer's state"), zip(*held)):
            least, most = min(each) / 1e6, max(each) / 1e6
            self.say(f"ranks hold {least:.2f} to {most:.2f} MB of {what}")

    def spread(self, placements: Mapping[str, Placement]) -> None:
        """Have in the layers that these are of the experts that this rank is to hold, still to be written."""
        ranks = self.ranks.part(self.layout.experts())
        spread(self.model.moe_layers(), placements, ranks, self.interleaver)

    def place_again(self) -> None:
        """Place experts by their loads since that was done last; weights and moments go with them."""
        if not (changed := self.placer.again()):
            return

        def weights() -> dict[str, Array]:
            units = whole_units(self.model)
            return {
                unit.label: unit.data for unit in units if unit.part.name.split(".experts.")[0] in changed
            }

        before = weights() | self.optimizer.inner.state_dict()
        self.spread(changed)
        self.replicas = Replicas(self.model, self.ranks, sharded=self.config.parallel.shard_optimizer)
        inner = self.optimizer_of_units()
        state = inner.state_dict()
        came = move(self.ranks, before, weights() | state)
        inner.load_state_dict(state)
        self.optimizer.renew(inner, self.replicas)
        every = self.ranks.everybody(came, "the bytes of experts that came")
        self.say(f"{sum(every) / 1e6:.2f} MB of weights and moments went to other ranks")

    def gradients(self, model: DeepSeekModel, work: Work, loss: Loss, state: State) -> dict[str, float]:
        """The loss of the whole batch with its parts; its gradient, or a share of it, in the leaves."""
        parts = list(work.parts[self.layout.line :: self.layout.lines])
        self.steps += 1
        traced = self.steps == self.config.parallel.trace_step and self.layout.length > 1
        if traced:
            self.ranks.everybody(None, "the beginning of the step that is traced")
            self.ranks.trace.restart()
            self.ranks.trace.recording = True
        with state.phase("passes"), self.ranks.patient() if self.steps == 1 else nullcontext():
            own = self.executor.run(parts, work.count, loss)  # the first time it may compile kernels
        if traced:
            self.ranks.trace.recording = False
            traces = self.ranks.to_first(self.ranks.trace, "the traces")[: self.layout.length]
            if self.speaks:
                lists = self.layout.schedule(self.layout.length, len(parts))
                cores = len(os.sched_getaffinity(0))
                self.say(write_charts(self.config.out, recorded(lists, traces), cores))
        with state.phase("sums over ranks"):
            moes = model.moe_layers()
            loads = {name: moe.load for name, moe in moes.items()}
            told = (own, loads, self.replicas.without_gradient())
            every = self.ranks.everybody(told, "the loss and the loads of experts")
            numbers, self.loads = summed(each[0] for each in every), summed(each[1] for each in every)
            for name, moe in moes.items():
                moe.load[...] = self.loads[name]
            self.replicas.add_up([missing for _, _, missing in every])
        return numbers

    def clip(self, model: DeepSeekModel, max_norm: float) -> float:
        """Scale the gradient of the whole network to that norm; return what it was."""
        return self.replicas.clip(max_norm)

    def squares(self, model: DeepSeekModel) -> dict[str, float]:
        """Of the gradient of the whole network, by layer."""
        return self.replicas.squares_by_layer()

    def fetch(self, moments: bool) -> None:
        """Collect the network, and if wanted the state of its optimizer, on the rank that speaks."""
        tells = self.replicas.tells
        own = {part.name: part.data for part in self.model.published() if tells(part.name)}
        inner = self.optimizer.inner.state_dict() if moments else {}
        if not self.replicas.sharded:  # all holders of a tensor have all of its moments
            inner = {key: values for key, values in inner.items() if tells(name_of(key))}
        every = self.ranks.to_first((own, inner), "the parts of the network")
        held = {name: data for each, _ in every for name, data in each.items()}
        if self.speaks:
            self.whole.allocate()
            for part in self.whole.published():
                part.data[...] = held[part.name]
                part.leaf.written()
        self.whole_optimizer.state = to_whole((state for _, state in every), self.places)

    def after(self, own: Sequence[Hook], speaker: Callable[[], Sequence[Hook]]) -> list[Hook]:
        """Every rank does `own`, rank 0 also what `speaker` makes, with the whole network where due."""
        hooks = list(speaker()) if self.speaks else []

        def together(state: State, record: Record) -> None:
            record["loads"] = self.loads
            if self.placer.hosts.ranks > 1:
                record["busiest_rank"] = self.placer.busiest(self.loads)
                self.placer.count(self.loads)
            for hook in own:
                hook(state, record)
            due = [hook for hook in hooks if hasattr(hook, "due") and hook.due(state)]
            decided = state.total, bool(due), any(isinstance(hook, SaveEvery) for hook in due)
            state.total, needed, saved = self.ranks.from_first(decided, "what rank 0 decides")
            with self.ranks.patient():
                if needed:
                    self.fetch(moments=saved)
                for hook in hooks:
                    hook(state, record)
                if needed:
                    self.ranks.from_first(None, "rank 0, which judges and saves")
            if (
                needed and state.done < state.total and self.speaks
            ):  # at the end the whole is judged once more
                decoding.forget(self.whole)
                self.whole.release()
                self.whole_optimizer.state = {}
            every = self.config.parallel.place_every
            if every and state.step % every == 0 and state.done < state.total:
                with state.phase("placing experts"):
                    self.place_again()

        return [together]


def summed(tables: Any) -> dict[str, Any]:
    """The sums over several dicts, name by name."""
    total: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            total[name] = total[name] + value if name in total else value
    return total
