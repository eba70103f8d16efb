"""Every fused kernel beside its reference form, and beside the limit of memory or of products.

The limit of memory is a copy that moves as many bytes, so that what fits into a cache is held to the cache;
that of reading weights is the rate at which memory is read.
"""

from functools import partial
from typing import Any

import tinygrad_ds as tg
from benchmarks.conductor import spread
from benchmarks.kernel_cases import (
    Call,
    Times,
    once,
    optimizer_calls,
    other_calls,
    primitive_cases,
    token_call,
)
from benchmarks.limits import copy_seconds, decoding_bytes, read_bandwidth, sgemm_rate
from benchmarks.speed import CASES, Say, case_name
from tinygrad_ds.kernels.table import TWINS


def alternate(fused: Call, reference: Call, rounds: int) -> dict[str, Any]:
    """Both forms in turn, the first time not counted: seconds, bytes kept for backward, how much faster."""
    taken: dict[str, list[Times]] = {"fused": [], "reference": []}
    for _ in range(rounds + 1):
        taken["fused"].append(fused())
        taken["reference"].append(reference())
    row: dict[str, Any] = {}
    for form, times in taken.items():
        row[form] = {
            "forward": spread([t.forward for t in times[1:]]),
            "backward": spread([t.backward for t in times[1:]]),
            "seconds": spread([t.forward + t.backward for t in times[1:]]),
            "saved_bytes": times[-1].saved_bytes,
            "moved_bytes": times[-1].moved_bytes,
        }
    row["times_faster"] = row["reference"]["seconds"]["median"] / row["fused"]["seconds"]["median"]
    return row


def limited(row: dict[str, Any], kind: str, seconds: float) -> dict[str, Any]:
    """The row with its limit."""
    share = seconds / row["fused"]["seconds"]["median"]
    return row | {"limit": kind, "limit_seconds": seconds, "share_of_limit": share}


def under(kernels: str, call: Call) -> Call:
    """The call with these kernels."""

    def chosen() -> Times:
        with tg.using(kernels=kernels):
            return call()

    return chosen


def measure(config: dict[str, Any], rounds: int, say: Say) -> dict[str, Any]:
    """Medians of both forms, their ratio, and the share of the limit: primitives, optimizer, decoding."""
    flop_rate, rows = sgemm_rate(), {}
    cases = primitive_cases()
    for name in TWINS["cpu"]:
        say(name)
        primitive, case = tg.primitives[name], cases[name]()
        twin = primitive.fused["cpu"]
        row = alternate(partial(once, twin, case), partial(once, primitive, case), rounds)
        if case.flop:
            rows[name] = limited(row, "products", case.flop / flop_rate)
        else:
            rows[name] = limited(row, "memory", copy_seconds(row["fused"]["moved_bytes"]))
    for name, (call, moved) in (other_calls() | optimizer_calls(config)).items():
        say(name)
        row = alternate(under("fused", call), under("reference", call), rounds)
        rows[name] = limited(row, "memory", copy_seconds(moved))
    reading = read_bandwidth()
    for batch, context in CASES:
        name = f"a token, {case_name(batch, context)}"
        say(name)
        call = token_call(config, batch, context)
        row = alternate(under("fused", call), under("reference", call), rounds)
        rows[name] = limited(row, "reading", decoding_bytes(config, batch, context) / reading)
    return {"read_bytes_per_second": reading, "sgemm_flop_per_second": flop_rate, "kernels": rows}
