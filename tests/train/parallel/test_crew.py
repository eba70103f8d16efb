"""Ranks compute what one process does: losses, every gradient, weights and moments, in float64."""

import pickle

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.train.parallel.jobs import alone, cases
from tests.train.parallel.launching import finish, start
from train.parallel.placement import Hosts, place_experts
from train.pipeline.measured import meanwhile

pytestmark = pytest.mark.mpi
PIPELINES = ["gpipe", "one_f_one_b", "zb1p", "dualpipe", "dualpipe_v"]
QUICK = {
    2: [name for name in cases(2) if "steps" not in name],
    4: [*PIPELINES, "pipeline x experts, copies, shares"],
}


def on_ranks(ranks, names, folder):
    """The results of the cases, by name."""
    path = folder / "results.pickle"
    code, _, errors = finish(start(ranks, "-m", "tests.train.parallel.jobs", path, *names), 500)
    assert code == 0, errors
    return pickle.loads(path.read_bytes())


def one_process(case, memory):
    """The same without ranks; cases that differ only in ranks are the same then."""
    key = (case.ranks, case.layers, case.tied, case.muon, case.mtp_weight, case.steps, case.experts)
    if key not in memory:
        with tg.using(kernels="reference"):
            memory[key] = alone(case)
    return memory[key]


def worst(ours, theirs):
    """The largest error of any array, relative to its largest entry; the names must be the same."""
    assert ours.keys() == theirs.keys()
    return max(
        np.abs(ours[name] - value).max() / max(np.abs(value).max(), 1e-30) for name, value in theirs.items()
    )


def compare(ranks, names, folder, tolerance=1e-12):
    memory = {}
    results = on_ranks(ranks, names, folder)
    for name, ours in results.items():
        theirs = one_process(cases(ranks)[name], memory)
        assert worst(ours["gradients"], theirs["gradients"]) < 1e-12, name
        assert worst(ours["weights"], theirs["weights"]) < tolerance, name
        assert worst(ours["state"], theirs["state"]) < tolerance, name
        for mine, other in zip(ours["losses"], theirs["losses"], strict=True):
            del mine["seconds"], other["seconds"]
            assert mine == pytest.approx(other, rel=tolerance), name
            other["seconds"] = 0.0
        for mine, other in zip(ours["loads"], theirs["loads"], strict=True):
            assert all((mine[layer] == load).all() for layer, load in other.items()), name
        assert ours["alike"], f"{name}: ranks that hold the same tensor hold different numbers"
        assert ours["alive"] == ours["planned"], name
        # Each number goes to rank 0 once, with some bytes of names and shapes.
        whole = sum(array.nbytes for kind in ("weights", "state") for array in ours[kind].values())
        assert whole < ours["fetched"] < 1.3 * whole + 2e4 * ranks, name
    return results


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_what_one_process_does(ranks, tmp_path):
    """Every schedule, with MTP, balance loss, embedding and head on different ranks; experts and shares."""
    results = compare(ranks, QUICK[ranks], tmp_path)
    for name, ours in results.items():
        if name.startswith("experts placed again"):
            case = cases(ranks)[name]
            even = place_experts(np.ones(8), Hosts(2, redundant=case.parallel.redundant_experts), n_group=2)
            assert any(placement != even for placement in ours["placements"].values()), name
    for trace in results["pipeline x experts, copies, shares"]["traces"] if ranks == 4 else ():
        check_turns(trace)
    for name in ("data", "dualpipe") if ranks == 2 else ():
        # ZeRO-1: all holders of a tensor together keep its moments once.
        whole, shared = (results[each]["moments"] for each in (name, f"{name}, shares"))
        assert sum(shared) == pytest.approx(sum(whole) / 2, rel=1e-3) and max(shared) < 1.1 * min(shared)


def check_turns(trace):
    """Attention, dispatch, experts and combine of two micro-batches take turns, and rows travel meanwhile."""
    overlapped = [span for span in trace.steps if span.name.endswith("OVERLAP_F_B")]
    assert overlapped
    for step in overlapped:
        forward, backward = step.name.removesuffix(")OVERLAP_F_B")[1:].split(";")
        inside = [s.name for s in trace.components if step.began <= s.began and s.ended <= step.ended]
        turns = [name.split()[0] for name in inside]
        assert set(turns) == {forward, backward}
        alternating = 2 * min(turns.count(forward), turns.count(backward))
        assert all(one != other for one, other in zip(turns, turns[1:alternating]))
    parts = {span.name.split(maxsplit=1)[1].split()[0] for span in trace.components}
    assert {"attention", "dispatch", "experts", "combine"} <= parts
    travelled = [
        flight for flight in trace.flights if flight.what.startswith(("the rows", "the gradients of"))
    ]
    assert len(travelled) >= 4 * len(overlapped)
    busy = [flight for flight in travelled if meanwhile(flight, trace.components)]
    assert len(busy) > len(travelled) / 2


@pytest.mark.slow
def test_four_ranks_in_every_other_way(tmp_path):
    compare(4, [name for name in cases(4) if name not in QUICK[4] and "steps" not in name], tmp_path)


@pytest.mark.slow
def test_eight_ranks(tmp_path):
    """Every schedule, and pipeline x experts x data with copies and shares for three steps."""
    compare(8, [*PIPELINES, "pipeline x experts x data, copies, shares"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_loss_curve_of_fifty_steps(ranks, tmp_path):
    """Rounding differs, and training makes a little more of it."""
    losses = compare(ranks, ["dualpipe, 50 steps"], tmp_path, tolerance=1e-9)["dualpipe, 50 steps"]["losses"]
    assert len(losses) == 50
