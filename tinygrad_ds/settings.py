"""What holds for a stretch of code: which kernels, which device, whether calls are recorded and watched.

    with tg.using(kernels="reference", detect_anomaly=True):
        ...

`TINYGRAD_DS_KERNELS` and `TINYGRAD_DS_DEVICE` set the defaults from outside.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

CHOICES = {"kernels": ("fused", "reference"), "device": ("cpu", "cuda")}


@dataclass(frozen=True)
class Settings:
    """The settings in force.

    `deferred` is the queue of `defer_weight_gradients`, where one is open; `observer` is told of every call
    (see observation.py). `first_run`: when what `recompute` now runs again ran first, None elsewhere.
    """

    kernels: str = "fused"
    device: str = "cpu"
    detect_anomaly: bool = False
    recording: bool = True
    deferred: Any = None
    observer: Any = None
    first_run: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r} but must be one of {', '.join(allowed)}")


_from_outside = Settings(
    kernels=os.environ.get("TINYGRAD_DS_KERNELS", "fused"),
    device=os.environ.get("TINYGRAD_DS_DEVICE", "cpu"),
)
_current = ContextVar("tinygrad_ds", default=_from_outside)


def current() -> Settings:
    """The settings in force here. A new thread begins with what the environment asked for."""
    return _current.get()


@contextmanager
def changed(**changes: Any) -> Iterator[Settings]:
    """Change any field of the settings for the length of a `with` block."""
    token = _current.set(replace(current(), **changes))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def using(
    *, kernels: str | None = None, device: str | None = None, detect_anomaly: bool | None = None
) -> Any:
    """Choose kernels ("reference" or "fused"), device ("cpu" or "cuda") and anomaly detection in a `with`.

    detect_anomaly checks by checksums that nothing saved for backward was changed behind the tape's back, and
    names the first primitive whose gradient is not finite.
    """
    given = {"kernels": kernels, "device": device, "detect_anomaly": detect_anomaly}
    return changed(**{name: value for name, value in given.items() if value is not None})


def no_grad() -> Any:
    """Record nothing in a `with` block: no gradients, and nothing is saved."""
    return changed(recording=False)
