"""What a schedule must keep to, whatever its steps cost; a schedule that does not is refused with the reason.

1. Every stage passes every micro-batch forward once, and backward once: whole, or in two halves.
2. All passes of a micro-batch at a stage stand on one rank, which has its inputs, and in their order.
3. On each channel (from rank, to rank, output or gradient, stage) messages are taken in the order in which
   they are sent, so that a rank tells them apart by their channel alone.
4. No deadlock. A rank decides nothing: it does its steps in order and waits for messages that are named
   beforehand. So whether all finish does not depend on who is fast (such networks are confluent: Kahn 1974),
   and one run without a clock decides for every timing.

A buffered send ends at once. A rendezvous waits until the other side has asked for the message, which costs
no memory but may close a circle. Both are run; the report says how many receives a rank has to ask for ahead
on each channel for the rendezvous never to do so.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from train.pipeline.memory import most_alive, most_waiting
from train.pipeline.messages import Message, Planned, plan, stage_count
from train.pipeline.steps import KINDS, B, F, I, Overlap, Schedule, ScheduleError, Step, W

Channel = tuple[int, int, str, int]


class Report(NamedTuple):
    """What is known about a schedule that may run."""

    stages: int
    microbatches: int
    alive: list[int]  # for every rank, the most stage inputs that it keeps at once
    waiting: list[int]  # for every rank, the most weight halves that wait at once
    messages: int
    ahead: int  # receives to ask for ahead, on each channel, if sends wait for their receives


def check(schedule: Schedule) -> Report:
    """Everything above. A ScheduleError says what is wrong first."""
    check_passes(schedule)
    planned = plan(schedule)
    check_order_on_ranks(schedule)
    check_channels(planned)
    if stuck := run(planned, ahead=None):
        raise ScheduleError(f"deadlock: {stuck}")
    ahead = 0
    while run(planned, ahead):
        ahead += 1
    microbatches = 1 + max(part.microbatch for part in all_parts(schedule))
    messages = sum(len(step.sends) for rank in planned for step in rank)
    return Report(
        stages=stage_count(schedule),
        microbatches=microbatches,
        alive=most_alive(schedule),
        waiting=most_waiting(schedule),
        messages=messages,
        ahead=ahead,
    )


def all_parts(schedule: Schedule) -> list[Step]:
    """Every pass of every rank."""
    return [part for rank in schedule for step in rank for part in step.parts]


def check_passes(schedule: Schedule) -> None:
    """Each stage and micro-batch has F once, and B once or I and W once each."""
    parts = all_parts(schedule)
    if not parts:
        raise ScheduleError(
            "the schedule has no steps: a pipeline has at least one stage and one micro-batch"
        )
    for part in parts:
        if part.kind not in KINDS or part.stage < 0 or part.microbatch < 0:
            raise ScheduleError(
                f"{part} is no step: its kind is one of {' '.join(KINDS)}, its numbers are from 0"
            )
    for step in (step for rank in schedule for step in rank if isinstance(step, Overlap)):
        if (step.forward.kind, step.backward.kind) != (F, B):
            raise ScheduleError(f"{step} is no F&B: it is one F and one whole B, in this order")
    times = Counter(parts)
    for part, number in times.items():
        if number > 1:
            raise ScheduleError(f"{part} stands {number} times in the schedule: once is enough")
    for stage in range(stage_count(schedule)):
        for microbatch in range(1 + max(part.microbatch for part in parts)):
            f, b, i, w = (Step(stage, kind, microbatch) for kind in KINDS)
            if f not in times:
                raise ScheduleError(f"{f} is missing: every stage passes every micro-batch forward once")
            if b in times and (i in times or w in times):
                half = i if i in times else w
                raise ScheduleError(f"{half} stands beside {b}: the whole backward pass has done it already")
            if b not in times and not (i in times and w in times):
                both = f"{b} is missing, or {i} and {w}" if i not in times and w not in times else ""
                raise ScheduleError(
                    both or f"{w if i in times else i} is missing: its other half stands alone"
                )


def check_order_on_ranks(schedule: Schedule) -> None:
    """F before B or I, I before W, each on the rank of the others (which `plan` has seen to)."""
    for rank, steps in enumerate(schedule):
        done: set[Step] = set()
        for place, step in enumerate(steps):
            for part in step.parts:
                if part.kind == F:
                    continue
                before = part._replace(kind=I if part.kind == W else F)
                if before not in done:
                    raise ScheduleError(f"rank {rank} does {step}, its step {place}, before {before}")
            done.update(step.parts)


def channel(message: Message) -> Channel:
    """By what two ranks tell their messages apart."""
    return (message.source, message.destination, message.kind, message.stage)


def by_channel(planned: Sequence[Sequence[Planned]], side: str) -> dict[Channel, list[Message]]:
    """The messages of every channel in the order of their "sends" or "receives"."""
    found: dict[Channel, list[Message]] = defaultdict(list)
    for rank in planned:
        for step in rank:
            for message in getattr(step, side):
                found[channel(message)].append(message)
    return found


def check_channels(planned: Sequence[Sequence[Planned]]) -> None:
    """Sent and received in the same order."""
    taken = by_channel(planned, "receives")
    for key, sent in by_channel(planned, "sends").items():
        for first, second in zip(sent, taken[key]):
            if first != second:
                raise ScheduleError(
                    f"rank {key[0]} sends the {first}, where rank {key[1]} takes that of micro-batch "
                    f"{second.microbatch}: keep both ranks to one order"
                )


def run(planned: Sequence[Sequence[Planned]], ahead: int | None) -> str:
    """Let every rank go as far as it can; the sentence that says who waits for whom, or "" if all finish.

    ahead: None for buffered sends; else a send waits until its receive has been asked for, which happens when
    the other side comes to the step that needs it, or when all but `ahead` messages before it were taken.
    """
    places = {
        message: number
        for sent in by_channel(planned, "sends").values()
        for number, message in enumerate(sent)
    }
    needed_at = {
        message: place for rank in planned for place, step in enumerate(rank) for message in step.receives
    }
    at = [0] * len(planned)  # the step that each rank is at
    computed = [False] * len(planned)  # and whether it only waits for that step's sends
    sent: set[Message] = set()
    taken: Counter[Channel] = Counter()
    waits: dict[int, tuple[int, str]] = {}  # rank -> the rank that it waits for, and why

    def obstacle(rank: int) -> tuple[int, str] | None:
        """The rank that this one waits for at its step, and what for."""
        step = planned[rank][at[rank]]
        if not computed[rank]:
            for message in step.receives:
                if message not in sent:
                    return message.source, f"rank {rank} waits at {step.step} for the {message}"
            return None
        for message in step.sends if ahead is not None else ():
            there = message.destination
            asked = (
                places[message] < taken[channel(message)] + (ahead or 0) or at[there] >= needed_at[message]
            )
            if not asked:
                return there, f"rank {rank} waits after {step.step} until rank {there} asks for the {message}"
        return None

    def advance(rank: int) -> None:
        """The next thing that the rank does."""
        step = planned[rank][at[rank]]
        if computed[rank]:
            at[rank] += 1
        else:
            taken.update(map(channel, step.receives))
            sent.update(step.sends)
        computed[rank] = not computed[rank]

    awake = deque(range(len(planned)))
    while awake:
        rank = awake.popleft()
        waits.pop(rank, None)
        while at[rank] < len(planned[rank]):
            if wait := obstacle(rank):
                waits[rank] = wait
                break
            advance(rank)
            awake.extend(other for other, (there, _) in waits.items() if there == rank and other not in awake)
    return circle(waits)


def circle(waits: Mapping[int, tuple[int, str]]) -> str:
    """Who waits for whom, all the way round; "" where nobody waits."""
    if not waits:
        return ""
    rank, passed = min(waits), []
    while rank not in passed:
        passed.append(rank)
        rank = waits[rank][0]
    return ", ".join(waits[rank][1] for rank in passed[passed.index(rank) :])
