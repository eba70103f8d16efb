"""Watching calls: seconds and bytes of every primitive, forward and backward.

    with tg.observe(tg.Profile()) as profile:
        model.loss(ids, targets).backward()
    print(profile)

An observer is any object with the two methods of `Profile`; the engine tells it of every call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tinygrad_ds import settings
from tinygrad_ds.device import Array
from tinygrad_ds.tape import Record, arrays_in


@dataclass
class Share:
    """What one primitive took: calls, seconds in each direction, bytes that its forwards saved."""

    calls: int = 0
    forward: float = 0.0
    backward: float = 0.0
    saved_bytes: int = 0


@dataclass
class Profile:
    """Sums by primitive. `shares` maps a name to its Share; printed, the largest stand first."""

    shares: dict[str, Share] = field(default_factory=dict)

    def forward(self, pair: Any, arrays: list[Array], result: Any, saved: Any, seconds: float) -> None:
        """A forward ran: `pair` is what served it, reference or twin."""
        share = self.shares.setdefault(pair.name, Share())
        share.calls += 1
        share.forward += seconds
        share.saved_bytes += sum(array.nbytes for array in arrays_in(saved))

    def backward(self, record: Record, grads: list[Array], given: tuple, seconds: float) -> None:
        """A backward ran: gradients `grads` came to the record's outputs and `given` left for its inputs."""
        self.shares.setdefault(record.pair.name, Share()).backward += seconds

    @property
    def seconds(self) -> float:
        """All seconds spent in primitives."""
        return sum(share.forward + share.backward for share in self.shares.values())

    def __str__(self) -> str:
        lines = [
            f"{'primitive':<20}{'calls':>7}{'forward ms':>12}{'backward ms':>12}{'share':>8}{'saved MB':>10}"
        ]
        total = self.seconds or 1.0
        for name, share in sorted(self.shares.items(), key=lambda item: -item[1].forward - item[1].backward):
            lines.append(
                f"{name:<20}{share.calls:>7}{1e3 * share.forward:>12.2f}{1e3 * share.backward:>12.2f}"
                f"{(share.forward + share.backward) / total:>8.1%}{share.saved_bytes / 1e6:>10.2f}"
            )
        return "\n".join(lines)


@contextmanager
def observe(observer: Any) -> Iterator[Any]:
    """Tell `observer` of every call in a `with` block, which gets it back."""
    with settings.changed(observer=observer):
        yield observer
