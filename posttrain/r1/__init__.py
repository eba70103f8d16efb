"""The road to R1 (DeepSeek-R1, 2025) in small: a base, R1-Zero, five stages, and students."""

from posttrain.r1.plan import go, stages
from posttrain.r1.road import travel
from posttrain.r1.settings import DEMO, Road

__all__ = ["DEMO", "Road", "go", "stages", "travel"]
