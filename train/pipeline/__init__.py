"""Pipelines: schedules as data, what they promise, how long they take, and their execution."""

from train.pipeline import schedule
from train.pipeline.checker import check
from train.pipeline.simulator import Simulator, simulate
from train.pipeline.steps import Overlap, Schedule, ScheduleError, Step
from train.pipeline.timeline import Timeline
from train.pipeline.times import Times

__all__ = [
    "Overlap",
    "Schedule",
    "ScheduleError",
    "Simulator",
    "Step",
    "Timeline",
    "Times",
    "check",
    "schedule",
    "simulate",
]
