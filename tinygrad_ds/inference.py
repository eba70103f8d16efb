"""Functions for decoding: plain arrays in, plain arrays out, no gradient and no tape.

Like a primitive, each has a reference form to read and may have a fused twin of the same signature, which
runs while `tg.using(kernels="fused")` holds; a twin that returns NotImplemented leaves the call to it.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tinygrad_ds import settings
from tinygrad_ds.device import device_of
from tinygrad_ds.kernels.table import INFERENCE_TWINS

inference_functions: dict[str, "InferenceFunction"] = {}


class _Twins(Mapping):
    """device -> twin, imported when first asked for: a device's modules may need what is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loaded: dict[str, Callable] = {}

    def __getitem__(self, device: str) -> Callable:
        if device not in self._loaded:
            module = importlib.import_module(
                f"tinygrad_ds.kernels.{device}.{INFERENCE_TWINS[device][self._name]}"
            )
            self._loaded[device] = getattr(module, self._name)
        return self._loaded[device]

    def __iter__(self) -> Iterator[str]:
        return (device for device, names in INFERENCE_TWINS.items() if self._name in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class InferenceFunction:
    """One function with its twins. Made by the decorator `@inference`."""

    def __init__(self, reference: Callable) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.fused = _Twins(reference.__name__)
        self.__doc__ = reference.__doc__
        inference_functions[self.name] = self

    def __call__(self, x: Any, *arguments: Any, **options: Any) -> Any:
        if settings.current().kernels == "fused" and (twin := self.fused.get(device_of(x))) is not None:
            answer = twin(x, *arguments, **options)
            if answer is not NotImplemented:
                return answer
        return self.reference(x, *arguments, **options)


def inference(reference: Callable) -> InferenceFunction:
    """Register a function on plain arrays that decoding calls."""
    return InferenceFunction(reference)
