"""What is published of the schedules (DeepSeek-V3, table 2), to be held beside what a simulation gives."""

from typing import NamedTuple


class Promise(NamedTuple):
    """By formula. The bubble is exact where F = W = B - W.

    For other times, with I = B - W and F&B = F + B, the simulation says: GPipe and 1F1B keep to it always;
    ZB1P where W is at most F and I, else it waits longer; both DualPipes where F = I and W is at most that.
    They wait less than promised where F < I and W is at most I, and longer in all other cases.
    """

    bubble: float  # idle time of the rank that idles most, messages free
    parameters: int  # copies of the network's parameters, in all ranks together
    alive: int  # stage inputs on the rank that keeps most


def promise(
    name: str, ranks: int, microbatches: int, F: float = 1.0, B: float = 2.0, W: float = 1.0, FB: float = 3.0
) -> Promise:
    """Of the schedule of that name, on so many ranks, with enough micro-batches to fill it.

    F, B, W, FB: times of one stage's passes. The V form has two stages to a rank: PP = 2 ranks.
    """
    match name:
        case "gpipe":
            return Promise((ranks - 1) * (F + B), 1, microbatches)
        case "one_f_one_b":
            return Promise((ranks - 1) * (F + B), 1, ranks)
        case "zb1p":
            return Promise((ranks - 1) * (F + B - 2 * W), 1, ranks)
        case "dualpipe":
            return Promise((ranks // 2 - 1) * (FB + B - 3 * W), 2, ranks + 1)
        case "dualpipe_v":
            return Promise((ranks - 1) * (FB + B - 3 * W), 1, 2 * ranks + 1)
    raise KeyError(name)
