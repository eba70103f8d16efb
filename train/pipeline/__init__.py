"""Pipelines: schedules as data, what they promise, how long they take, and their execution."""

from train.pipeline import schedule
from train.pipeline.steps import Overlap, Schedule, ScheduleError, Step

__all__ = ["Overlap", "Schedule", "ScheduleError", "Step", "schedule"]
