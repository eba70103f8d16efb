"""Functions for decoding: plain arrays in, plain arrays out, no gradient and no tape.

Like a primitive, each has a reference form to read and may have a fused twin of the same signature, which
runs while `tg.using(kernels="fused")` holds; a twin that returns NotImplemented leaves the call to it.
"""

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from tinygrad_ds import settings
from tinygrad_ds.device import device_of
from tinygrad_ds.kernels.table import INFERENCE_TWINS

inference_functions: dict[str, "InferenceFunction"] = {}


class InferenceFunction:
    """One function with its twins. Made by the decorator `@inference`."""

    def __init__(self, reference: Callable) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.__doc__ = reference.__doc__
        inference_functions[self.name] = self

    @cached_property
    def fused(self) -> dict[str, Callable]:
        """device -> twin, imported when first asked for."""
        modules = {
            device: names[self.name] for device, names in INFERENCE_TWINS.items() if self.name in names
        }
        return {
            device: getattr(importlib.import_module(f"tinygrad_ds.kernels.{device}.{module}"), self.name)
            for device, module in modules.items()
        }

    def __call__(self, x: Any, *arguments: Any, **options: Any) -> Any:
        if settings.current().kernels == "fused" and (twin := self.fused.get(device_of(x))) is not None:
            answer = twin(x, *arguments, **options)
            if answer is not NotImplemented:
                return answer
        return self.reference(x, *arguments, **options)


def inference(reference: Callable) -> InferenceFunction:
    """Register a function on plain arrays that decoding calls."""
    return InferenceFunction(reference)
