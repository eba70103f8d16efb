# %% [markdown]
# # The bubble, from 1F1B to DualPipe
#
# A network cut into stages, a batch cut into micro-batches: while the first stage works on one, the last has
# nothing to do yet. That waiting is the bubble. We take it apart schedule by schedule, as data: lists of
# steps, checked, timed and drawn, no network needed.
#
# Equation: bubble = (PP/2 - 1) (F&B + B - 3W)                         File: train/pipeline/dualpipe.py

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from train.pipeline import ScheduleError, Simulator, Times, check, schedule, simulate
from train.pipeline.drawing import chart
from train.pipeline.promise import promise
from train.pipeline.search import best_split, stage_sums

PP, MICROBATCHES = 8, 20
for steps in schedule.dualpipe(4, 8):
    print(*steps)

# %% [markdown]
# ## One batch, four orders
#
# F is a forward pass of one stage, B the backward pass, made of I (gradients of the inputs, which the stage
# before waits for) and W (gradients of the weights, which nobody waits for). Let F = I = W = 1.
#
# - GPipe does all forward passes first: it waits at the start and at the end, and keeps every input alive.
# - 1F1B does a backward pass as soon as it can: it waits as long, but keeps at most PP inputs.
# - ZB1P moves W's to where it would wait.
# - DualPipe lets micro-batches in at both ends, so that every rank has work of two directions, and
#   interleaves a forward with a backward pass. DualPipeV is its half: no stage is held twice, each is half as
#   large.

# %%
timelines = {
    "GPipe": simulate(schedule.gpipe(PP, MICROBATCHES)),
    "1F1B": simulate(schedule.one_f_one_b(PP, MICROBATCHES)),
    "ZB1P": simulate(schedule.zb1p(PP, MICROBATCHES)),
    "DualPipe": simulate(schedule.dualpipe(PP, MICROBATCHES)),
    "DualPipeV, stages half as large": simulate(schedule.dualpipe_v(PP, MICROBATCHES), Times(0.5, 0.5, 0.5)),
}
names = ("gpipe", "one_f_one_b", "zb1p", "dualpipe", "dualpipe_v")
print(f"\n{'':32}length  bubble  formula  inputs alive")
for (title, timeline), name in zip(timelines.items(), names):
    halves = (0.5, 1.0, 0.5, 1.5) if name == "dualpipe_v" else (1, 2, 1, 3)
    promised = promise(name, PP, MICROBATCHES, *halves)
    assert timeline.bubble == promised.bubble and max(timeline.peak_memory) == promised.alive
    print(f"{title:32}{timeline.length:6g}  {timeline.bubble:6g}  {promised.bubble:7g}  {promised.alive:12}")

folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
(folder / "09_dualpipe.svg").write_text(chart(timelines))

# %% [markdown]
# ## The formula is for equal halves
#
# Where I takes longer than F the order of DualPipe waits a little less than the formula says: some of that
# time is in overlapped passes, where it is nobody's wait.

# %%
for f, i, w in ((1, 1, 1), (1, 2, 1), (1, 1.5, 0.5), (2, 1, 1)):
    timeline = simulate(schedule.dualpipe(PP, MICROBATCHES), Times(F=f, I=i, W=w))
    said = promise("dualpipe", PP, MICROBATCHES, f, i + w, w, f + i + w).bubble
    print(f"F {f}, B {i + w}, W {w}: formula {said:g}, simulated {timeline.bubble:g}")

# %% [markdown]
# ## What DualPipe is for
#
# With experts on other machines every pass has an all-to-all, and all but F&B have to wait for it. In F&B
# it runs beside the other micro-batch's products: as long as it takes less than they do, it costs nothing.

# %%
exchanges = np.linspace(0, 2, 21)
simulators = {
    title: Simulator(schedule.SCHEDULES[name](PP, MICROBATCHES))
    for title, name in (("1F1B", "one_f_one_b"), ("ZB1P", "zb1p"), ("DualPipe", "dualpipe"))
}
lengths = {
    title: [simulator.run(Times(all_to_all=float(a))).length for a in exchanges]
    for title, simulator in simulators.items()
}

# %% [markdown]
# ## A slow rank, and layers that differ
#
# One rank that takes a fifth longer makes everybody wait. Each rank of DualPipe has two stages, one near
# either end: its stages' times count as a sum, and a search over the splits of the layers uses that.

# %%
slow = [Times(slowdown=[1.2 if rank == late else 1 for rank in range(PP)]) for late in range(PP)]
stragglers = {
    title: [simulator.run(times).length for times in slow] for title, simulator in simulators.items()
}

heavy = [1.0] * 20 + [5.0]  # the head is as much work as five layers
layers = Times(F=heavy, I=heavy, W=heavy)
for title, simulator in simulators.items():
    even = simulator.run(stage_sums(layers, (3, 3, 3, 3, 3, 2, 2, 2))).length
    best = best_split(simulator.schedule, layers, len(heavy))
    print(f"{title}: {even:g} with layers split evenly, {best.length:g} with {best.counts}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for title in simulators:
    left.plot(exchanges, lengths[title], label=title)
    right.plot(range(PP), stragglers[title], marker="o", label=title)
left.set(xlabel="all-to-all of one pass (F = 1)", ylabel="length of the step", title="waiting for experts")
right.set(xlabel="the rank that takes 1.2 times as long", ylabel="length of the step", title="one slow rank")
left.legend()
figure.savefig(folder / "09_dualpipe_costs.svg")

# %% [markdown]
# ## Nothing may be moved by hand
#
# The checker knows the dependency graph. Steps that nothing ties to each other may change places, which costs
# time and nothing else; where something does, it says who would wait for whom.

# %%
moved = schedule.one_f_one_b(3, 4)
moved[1][1], moved[1][2] = moved[1][2], moved[1][1]  # rank 1: 1B0 before 1F1
print(f"{check(moved).messages} messages pass, but the bubble is {simulate(moved).bubble:g} for 6")
moved = schedule.one_f_one_b(3, 4)
moved[0].insert(1, moved[0].pop(3))  # rank 0: 0B0 before 0F1, which 1F1 waits for
try:
    check(moved)
except ScheduleError as reason:
    print("refused:", reason)

# %% [markdown]
# ## Two things to try
#
# 1. Give DualPipe fewer micro-batches, 16, then more, 64. The bubble stays: what becomes of its share?
# 2. Put `communication=0.5` into `simulate`: a message then takes half a pass. Which schedule suffers most,
#    and why does 1F1B not hide it in its steady part?
