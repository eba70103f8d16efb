"""The exercises: a ladder from `add` to MLA and MTP, the files that they write, and their grader."""

from lab.exercises import first_steps, network, deepseek, slips, slips_network  # isort: skip - the order of the ladder
from lab.exercises.making import LADDER, Exercise, Slip

__all__ = ["LADDER", "Exercise", "Slip", "deepseek", "first_steps", "network", "slips", "slips_network"]
