"""Cases for every primitive: small random ones, one to follow by hand, one of a standard size."""

from lab.cases import coarse, fp8, simple
from lab.cases.making import (
    MAKERS,
    STANDARD,
    Case,
    Draw,
    Maker,
    case,
    cotangent,
    small,
    standard,
    worked,
)

__all__ = [
    "MAKERS",
    "STANDARD",
    "Case",
    "Draw",
    "Maker",
    "case",
    "coarse",
    "cotangent",
    "posttrain",
    "fp8",
    "simple",
    "small",
    "standard",
    "worked",
]
