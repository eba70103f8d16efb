"""What fits on a GPU: a warning before a run starts, and a report where memory runs out all the same."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from layers import DeepSeekConfig, DeepSeekModel
from layers.inspection import size
from layers.roofline import memory_to_train
from tinygrad_ds.device import here


class OutOfMemory(RuntimeError):
    """A GPU's memory did not suffice for a step; the weights are as before it."""


def device_bytes() -> int | None:
    """Bytes that a run may take on the chosen device; None where that is the CPU."""
    module = here()
    if not hasattr(module, "cuda"):
        return None
    free, _ = module.cuda.runtime.memGetInfo()
    return free + module.get_default_memory_pool().free_bytes()


def too_large(config: DeepSeekConfig, batch: int, length: int, available: int | None) -> str | None:
    """A sentence where training will not fit into `available` bytes: what to lower, and to what."""
    if available is None:
        return None
    needs = memory_to_train(config, batch, length)
    if (total := sum(needs.values())) <= available:
        return None
    for_a_row = needs["kept for backward"] / batch
    fixed = total - needs["kept for backward"]
    fits = math.floor((available - fixed) / for_a_row) if available > fixed else 0
    told = f"this run needs about {size(total)} but the GPU has {size(available)} to give: "
    if fits >= 1:
        return f"{told}lower micro_batch from {batch} to {fits}, which adds up to the same batch"
    if available > fixed:
        return f"{told}lower time, which is {length}: backward keeps {size(for_a_row)} of a sequence"
    return f"{told}weights, gradients and moments take {size(fixed)}, so the network must be smaller"


@contextmanager
def told_where_it_went(model: DeepSeekModel, optimizer: Any, batch: int) -> Iterator[None]:
    """In a `with` block CuPy's OutOfMemoryError becomes OutOfMemory: how much, who holds it, a remedy."""
    try:
        yield
    except MemoryError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        held = holders(model, optimizer)
        largest = ", ".join(f"{name} {size(taken)}" for name, taken in held.items() if taken)
        remedy = (
            f"lower micro_batch, which is {batch}" if batch > 1 else "lower time, or take a smaller network"
        )
        raise OutOfMemory(f"{error} The largest holders: {largest}. Remedy: {remedy}.") from None


def holders(model: DeepSeekModel, optimizer: Any) -> dict[str, int]:
    """Bytes on the device by purpose, the largest first; what is in no leaf is the forward pass's."""
    leaves = list(model.parameters())
    held = {
        "weights": sum(leaf.data.nbytes for leaf in leaves),
        "gradients": sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None),
        "moments": sum(array.nbytes for array in optimizer.moment_arrays()),
    }
    used = here().get_default_memory_pool().used_bytes()
    held["kept for backward"] = max(0, used - sum(held.values()))
    return dict(sorted(held.items(), key=lambda pair: -pair[1]))
