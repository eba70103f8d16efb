"""Which rank does what: ranks in lines, the lines side by side.

A line is a pipeline over the whole network; rank = line * length + position. All lines train on different
micro-batches. Ranks of `expert_ranks` neighbouring lines that have the same position share out the experts of
their layers.
"""

from collections.abc import Callable
from typing import NamedTuple

from train.config import Config, Parallel
from train.errors import UserError
from train.pipeline.messages import stage_count, stages_of
from train.pipeline.schedule import SCHEDULES
from train.pipeline.stage import split_layers
from train.pipeline.steps import Schedule


class Layout(NamedTuple):
    """The place of one rank."""

    rank: int
    lines: int
    length: int  # ranks in a line
    expert_ranks: int
    schedule: Callable[[int, int], Schedule]

    @property
    def line(self) -> int:
        """The number of the rank's line."""
        return self.rank // self.length

    @property
    def position(self) -> int:
        """The rank's place in its line."""
        return self.rank % self.length

    def mates(self) -> list[int]:
        """The ranks of this line."""
        return [self.line * self.length + position for position in range(self.length)]

    def experts(self) -> list[int]:
        """The ranks that share out the experts of this rank's layers."""
        first = self.line - self.line % self.expert_ranks
        return [line * self.length + self.position for line in range(first, first + self.expert_ranks)]

    def stages(self, layers: int) -> dict[int, range]:
        """The stages of this rank, each with its layers. UserError where a stage would have none."""
        lists = self.schedule(self.length, 2 * self.length)  # so many that every schedule can be made
        split = split_layers(layers, stage_count(lists))
        return {stage: split[stage] for stage in stages_of(lists)[self.position]}


def make_layout(settings: Parallel, rank: int, ranks: int) -> Layout:
    """Share out the ranks. Raises UserError for numbers that do not go into each other."""
    experts = settings.expert_ranks
    if settings.pipeline == "none":
        schedule, length = SCHEDULES["one_f_one_b"], 1
        if settings.pipeline_ranks not in (None, 1):
            raise UserError(
                f"pipeline_ranks is {settings.pipeline_ranks} but pipeline is none: choose a schedule by "
                "--pipeline"
            )
    else:
        schedule = SCHEDULES[settings.pipeline]
        length = settings.pipeline_ranks or max(ranks // experts, 1)
    if ranks % (length * experts):
        raise UserError(
            f"there are {ranks} ranks, but pipelines of {length} with experts on {experts} of them need a "
            f"multiple of {length * experts}: start so many by mpiexec -n"
        )
    return Layout(rank, ranks // length, length, experts, schedule)


def check_batches(config: Config, layout: Layout) -> None:
    """Raise UserError unless every batch of the run can be cut as lines and schedule need it."""
    schedule, lines = config.schedule, layout.lines
    least = schedule.first_batch or schedule.batch
    for sequences in range(least, schedule.batch + 1):
        parts = -(-sequences // config.micro_batch)
        if parts % lines:
            raise UserError(
                f"a batch of {sequences} sequences makes {parts} micro-batches of {config.micro_batch}, but "
                f"{lines} pipelines need a multiple of {lines}: change --batch or --micro-batch, and let the "
                "batch not grow (--first-batch 0)"
            )
        try:
            layout.schedule(layout.length, parts // lines)
        except UserError as error:
            raise UserError(
                f"{error}; a batch of {sequences} sequences makes {parts} micro-batches of "
                f"{config.micro_batch}, {parts // lines} for each pipeline: change --batch or --micro-batch"
            ) from error
