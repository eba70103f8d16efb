"""What fits on a GPU: a warning before a run starts, and a report where memory runs out all the same."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from layers import DeepSeekConfig, DeepSeekModel
from layers.inspection import size
from layers.roofline import memory_to_train
from tinygrad_ds.device import here


class OutOfMemory(RuntimeError):
    """A GPU's memory did not suffice; the weights are those of a step, but where `State.torn` says not."""


def device_bytes() -> int | None:
    """Bytes that a run may take on the chosen device; None where that is the CPU."""
    module = here()
    if not hasattr(module, "cuda"):
        return None
    free, _ = module.cuda.runtime.memGetInfo()
    return free + module.get_default_memory_pool().free_bytes()


def too_large(
    config: DeepSeekConfig, batch: int, length: int, available: int | None, *, recompute: bool = False
) -> str | None:
    """A sentence where training will not fit into `available` bytes: what to lower, and to what."""

    def needed(rows: int, again: bool) -> int:
        return sum(memory_to_train(config, rows, length, recompute=again).values())

    if available is None or needed(batch, recompute) <= available:
        return None
    told = f"this run needs about {size(needed(batch, recompute))} but the GPU has {size(available)} to give"
    remedies = []
    for again in sorted({recompute, True}):
        flag = "add --recompute" if again > recompute else ""
        if needed(1, again) <= available:
            rows = bisect_right(range(batch + 1), available, key=lambda rows: needed(rows, again)) - 1
            lower = f"lower micro_batch from {batch} to {rows}, which adds up to the same batch"
            remedies.append(" and ".join(filter(None, [flag, lower if rows < batch else ""])))
    if remedies:
        return f"{told}: {'; or '.join(remedies)}"
    fixed = sum(list(memory_to_train(config, 1, length).values())[:3])
    if fixed < available:
        kept = needed(1, True) - fixed
        return f"{told}: lower time, which is {length}: with --recompute a sequence takes {size(kept)}"
    return f"{told}: weights, gradients and moments take {size(fixed)}, so the network must be smaller"


def to_lower(batch: int, recompute: bool) -> str:
    """What a run that trains on text may lower where memory runs out all the same."""
    lower = f"lower micro_batch, which is {batch}" if batch > 1 else "lower time, or take a smaller network"
    return lower if recompute else f"add --recompute, or {lower}"


MOVING = "It ran out while the optimizer moved the weights, which are therefore not saved; "


@contextmanager
def told_where_it_went(model: DeepSeekModel, optimizer: Any, remedy: str) -> Iterator[None]:
    """In a `with` block CuPy's OutOfMemoryError becomes OutOfMemory: how much, who holds it, the remedy."""
    try:
        yield
    except MemoryError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        held = holders(model, optimizer)
        largest = ", ".join(f"{name} {size(taken)}" for name, taken in held.items() if taken)
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
