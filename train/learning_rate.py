"""The learning rate and the batch size over a run, as DeepSeek-V3 set them (its report, section 4.2)."""

import math
from dataclasses import dataclass

from train.errors import UserError

V3_TOKENS = 14.8e12


@dataclass(frozen=True)
class Schedule:
    """Warm-up, constant, cosine, constant, constant: shares of the run's tokens, rates in parts of the
    highest.

    The defaults are V3's: 2000 steps up to 2.2e-4, there to 10T tokens, cosine to 2.2e-5 over 4.3T, 333B of
    that, 167B at 7.3e-6; batches of 3072 sequences growing to 15360 over the first 469B tokens.
    """

    warmup_steps: int = 2000
    constant: float = 10e12 / V3_TOKENS
    """Share of the tokens after which the cosine begins."""
    cosine: float = 4.3e12 / V3_TOKENS
    """Share of the tokens over which the cosine falls."""
    floor: float = 0.1
    """Where the cosine ends."""
    last: float = 167e9 / V3_TOKENS
    """Share of the tokens, at the end, with the lowest rate."""
    last_floor: float = 7.3e-6 / 2.2e-4
    batch: int = 15360
    """Sequences in a batch."""
    first_batch: int = 3072
    """Sequences in the first batch; 0: as many as later."""
    ramp: float = 469e9 / V3_TOKENS
    """Share of the tokens over which the batch grows."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is {self.warmup_steps} but must be at least 0")
        for name in ("constant", "cosine", "floor", "last", "last_floor", "ramp"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value} but must be between 0 and 1")
        if self.constant + self.cosine + self.last > 1 + 1e-9:
            raise UserError(
                f"constant, cosine and last are {self.constant}, {self.cosine} and {self.last} of the run: "
                "together they must not be above 1"
            )
        if not 1 <= self.batch or not 0 <= self.first_batch <= self.batch:
            raise UserError(
                f"first_batch is {self.first_batch} and batch is {self.batch}: a batch holds at least one "
                "sequence and may only grow"
            )

    def rate(self, step: int, tokens: float, total: float) -> float:
        """The learning rate, in parts of the highest, of step `step` (from 0), before which come `tokens`."""
        done = tokens / total
        if done >= 1 - self.last:
            rate = self.last_floor
        else:
            fallen = (
                0.0 if done <= self.constant else min((done - self.constant) / max(self.cosine, 1e-9), 1.0)
            )
            rate = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * fallen)) / 2
        return rate * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def sequences(self, tokens: float, total: float) -> int:
        """The number of sequences in the batch that `tokens` of `total` tokens precede."""
        if not self.first_batch or tokens >= self.ramp * total:
            return self.batch
        return self.first_batch + round((self.batch - self.first_batch) * tokens / (self.ramp * total))
