"""Faults put into the kernels one at a time: every one must be noticed by the comparison with the reference.

Runs where blocks and threads come in random order and every array lies between guarded bytes, since some
faults, such as a missing barrier, show only there.
"""

import os
import traceback
from typing import NamedTuple

import cupy
import numpy as np
import pytest

from tests.cuda import test_bfloat16, test_muon, test_optimizer
from tests.cuda.test_kernels import LARGER, TOLERANCE, compare
from tinygrad_ds.kernels.cuda import common

STRICT = {"CUPY_ON_CPU", "CUPY_ON_CPU_SHUFFLE", "CUPY_ON_CPU_GUARD"}
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not STRICT <= os.environ.keys(), reason="needs random order and guarded arrays"),
]


class Mutant(NamedTuple):
    """One place of a file, and the primitives whose comparison runs over it."""

    file: str
    old: str
    new: str
    names: str


BARRIER, WARP_BARRIER = "__syncthreads();", "__syncwarp();"
MUTANTS = {
    # barriers that are missing
    "sum over a block: before the warps' sums are read": Mutant(
        "common.cuh", f"room[warp] = value;\n  {BARRIER}", "room[warp] = value;", "cross_entropy"
    ),
    "norm: before the block's columns are added": Mutant("norm.cu", BARRIER, "", "rmsnorm"),
    "embedding: before the counts of warps are read": Mutant("indexing.cu", BARRIER, "", "embedding"),
    "embedding: before the matches are read": Mutant(
        "indexing.cu", "(int)threadIdx.x;\n    __syncthreads();", "(int)threadIdx.x;", "embedding"
    ),
    "attention: before the stage is read": Mutant("attention.cu", BARRIER, "", "attention"),
    "attention: before the stage is filled again": Mutant(
        "attention.cu", f"{BARRIER}  // before", "// before", "attention"
    ),
    "attention: before the weights of a tile are read": Mutant("attention.cu", WARP_BARRIER, "", "attention"),
    "grouped: before the stage is read": Mutant("grouped.cu", BARRIER, "", "grouped_linear"),
    "router: before ranks are counted": Mutant("routing.cu", WARP_BARRIER, "", "router_selection"),
    "order of choices: before the count of lower experts is read": Mutant(
        "routing.cu", f"of_warp[warp] = lower;\n  {BARRIER}", "of_warp[warp] = lower;", "dispatch"
    ),
    # bounds that are off by one
    "norm: a row too many": Mutant("norm.cu", "if (n >= rows)", "if (n > rows)", "rmsnorm"),
    "norm: a column too many": Mutant(
        "norm.cu", "if (threadIdx.y > 0 || i >= d)", "if (threadIdx.y > 0 || i > d)", "rmsnorm"
    ),
    "rope: a pair too many": Mutant("rope.cu", "at >= rows * half", "at > rows * half", "rope"),
    "swiglu: an entry too few": Mutant("swiglu.cu", "at >= rows * width", "at >= rows * width - 1", "swiglu"),
    "softmax: the last column left out": Mutant(
        "activation.cu", "i < d; i += 32) total", "i < d - 1; i += 32) total", "softmax log_softmax"
    ),
    "loss: the last class left out": Mutant(
        "loss.cu", "v < d; v += THREADS) total", "v < d - 1; v += THREADS) total", "cross_entropy"
    ),
    "attention: sees one key too many": Mutant(
        "attention.cu", "|| j <= i + time_k", "|| j <= i + 1 + time_k", "attention"
    ),
    "attention: a tile too few": Mutant(
        "attention.cu", "start + ROWS + time_k", "start + time_k", "attention"
    ),
    "attention: sees a key before the first": Mutant(
        "attention.cu", "j >= first", "j >= first - 1", "attention"
    ),
    "grouped: a row of the next expert": Mutant(
        "grouped.cu", "row < behind && to < out", "row <= behind && to < out", "grouped_linear"
    ),
    "grouped: a row of the next expert in the gradient": Mutant(
        "grouped.cu",
        "const bool there = r < offsets[e + 1];",
        "const bool there = r <= offsets[e + 1];",
        "experts_in",
    ),
    "grouped: fewer tiles than rows need": Mutant(
        "grouped.cu", "+ TILE - 1) / TILE", ") / TILE", "grouped_linear experts_in"
    ),
    "experts: copies of the wrong token": Mutant(
        "moe.cu", "choice[at / d] / chosen", "choice[at / d] % chosen", "dispatch"
    ),
    "router: one expert too many": Mutant(
        "routing.cu",
        "rank(choice, e, experts) < chosen",
        "rank(choice, e, experts) <= chosen",
        "router_selection",
    ),
    "router: of equal ones the higher index": Mutant(
        "routing.cu", "return index_a < index_b;", "return index_a > index_b;", "ties"
    ),
    # races and lost sums
    "embedding: every position adds, with nobody in charge": Mutant(
        "indexing.cu", "if (__syncthreads_or(earlier)) return;", "__syncthreads_or(earlier);", "embedding"
    ),
    "embedding: later rounds write over earlier ones": Mutant(
        "indexing.cu", "real sum = grad[id * d + c];", "real sum = 0;", "embedding"
    ),
    "norm: parts of the weight's gradient in one place": Mutant(
        "norm.cu", "of_part[blockIdx.y * d + i] = sum;", "of_part[i] = sum;", "rmsnorm"
    ),
    "attention: sums are not brought to the new maximum": Mutant(
        "attention.cu", "sums[r][c] *= before;", "sums[r][c] *= 1;", "attention"
    ),
    "attention: one head of a group alone": Mutant(
        "attention.cu", "h < (kv + 1) * group", "h < kv * group + 1", "attention"
    ),
    "optimizer: squares of the first warp alone": Mutant(
        "optimizer.cu", "w < THREADS / 32; w++) sum", "w < 1; w++) sum", "optimizer"
    ),
    "optimizer: a step that is not finite is taken": Mutant(
        "optimizer.cu", "if (control && control[2] == 0) return;", "", "optimizer"
    ),
    "optimizer: a piece too long": Mutant(
        "optimizer.cu", "min(start + PIECE, leaf[4])", "start + PIECE", "optimizer"
    ),
    "FP8: an expert's last tile reaches into the next": Mutant(
        "quantize.cu", "min(offsets[e + 1], first + tile_rows)", "first + tile_rows", "fp8_experts_in"
    ),
    "FP8: all experts round like the first": Mutant(
        "quantize.cu", "(unsigned)expert * 0x9E3779B1u", "0u", "fp8_experts_in"
    ),
    "FP8: codes without a sign": Mutant("quantize.cu", "code += codes.top", "code += 0", "fp8_linear"),
    "FP8: the scale of the first tile for all of a row": Mutant(
        "quantize.cu", "i % columns / width]", "0]", "fp8_linear"
    ),
    "bfloat16: cut off, not rounded": Mutant(
        "common.cuh", "all + 0x7fff + (all >> 16 & 1)", "all", "bfloat16"
    ),
    "bfloat16: ties away from zero": Mutant("common.cuh", "0x7fff + (all >> 16 & 1)", "0x8000", "bfloat16"),
    "muon: before the warps' sums are read": Mutant("muon.cu", BARRIER, "", "muon"),
    "muon: the norm of the first piece": Mutant("muon.cu", "i < count; i++) sum", "i < 1; i++) sum", "muon"),
    "muon: turned as if square": Mutant("muon.cu", "i % n * k + i / n", "i % n * n + i / n", "muon"),
    "muon: a step that is not finite is taken": Mutant(
        "muon.cu", "return !control || control[2] != 0;", "return true;", "muon"
    ),
}


OTHERS = {  # what is no primitive
    "bfloat16": test_bfloat16.test_what_is_written_is_rounded_to_the_nearest_ties_to_even,
    "muon": test_muon.compare_with_the_host,
    "optimizer": test_optimizer.compare_with_the_host,
}


def with_ties():
    """A router whose logits are all equal: the lower indices win."""
    return [((np.zeros((5, 70)),), {"num_experts_per_tok": 3})]


def check(names):
    """Raise what the comparison raises."""
    for name in names.split():
        if name in OTHERS:
            OTHERS[name]()
            continue
        primitive = "router_selection" if name == "ties" else name
        for arrays, options in with_ties() if name == "ties" else LARGER[name]:
            assert compare(primitive, arrays, options, TOLERANCE["float64"])


def outcome(mutant):
    """What became of the comparison, in a child process, since some faults write where they like."""
    common.module.cache_clear()  # the child compiles anew, and the parent never sees the fault
    child = os.fork()
    if child == 0:
        try:
            check(mutant.names)
            os._exit(0)
        except (AssertionError, cupy.cuda.driver.CUDADriverError):
            os._exit(1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "noticed"
    return ("nothing", "noticed", "something else, such as a source that does not compile")[
        os.WEXITSTATUS(status)
    ]


@pytest.mark.parametrize("names", sorted({mutant.names for mutant in MUTANTS.values()}))
def test_without_a_fault_nothing_is_noticed(names):
    check(names)


@pytest.mark.parametrize("what", MUTANTS)
def test_fault_is_noticed(what, monkeypatch):
    mutant, original = MUTANTS[what], common.source
    text = (common.FOLDER / mutant.file).read_text()
    assert mutant.old in text

    def source(*arguments):
        return original(*arguments).replace(text, text.replace(mutant.old, mutant.new, 1))

    monkeypatch.setattr(common, "source", source)
    assert outcome(mutant) == "noticed"
