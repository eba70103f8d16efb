"""The exercises: a ladder from `add` to MLA and the losses of post-training, its files, and their grader."""

from lab.exercises import first_steps, network, deepseek, eight_bits, posttrain  # isort: skip - the order of the ladder
from lab.exercises import slips, slips_network, slips_posttrain
from lab.exercises.making import LADDER, Exercise, Slip

__all__ = [
    "LADDER",
    "Exercise",
    "Slip",
    "deepseek",
    "eight_bits",
    "first_steps",
    "network",
    "posttrain",
    "slips",
    "slips_network",
    "slips_posttrain",
]
