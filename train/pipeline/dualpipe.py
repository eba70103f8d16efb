"""The order of DualPipe's steps on one rank (DeepSeek-V3, section 3.2.1, and its published code).

Micro-batches enter at both ends of the pipeline, so each rank works in two directions: 0 is that of the
micro-batches which enter at the end nearer to it, 1 the other. How near decides the order, nothing else.
"""

from collections import deque
from collections.abc import Sequence
from itertools import count

from train.pipeline.steps import AnyStep, B, F, I, Overlap, Step, W


def order(p: int, k: int, c: int) -> list[str]:
    """What the rank that is k ranks away from its nearer end does, in eight parts, 0 <= k < p.

    p: half of the number of stages; c: micro-batches in each direction, at least 2 p. F0 is a forward pass in
    direction 0, B1 a whole backward pass in direction 1, I1 its first half, F0&B1 two interleaved, and W the
    weight half that has waited longest.
    """
    main = ["F0&B1", "F1&B0"] * (c - 2 * p + k + 1)
    if k == p - 1:  # nothing is gained at first on the middle ranks: what waits for the F waits for it alone
        main[:1] = ["F0", "B1"]
    last = ["B1", "B0"] * (k + 1)
    split = [action.replace("B", "I") for action in last[k + 1 :]]  # their weight halves fill the end
    return [
        *["F0"] * (2 * (p - k - 1)),
        *["F0", "F1"] * (k + 1),
        *["I1", "W", "F1"] * (p - k - 1),
        *main,
        *["B1", "F1&B0"] * (p - k - 1),
        *last[: k + 1],
        *split,
        *["W", "I0"] * (p - k - 1),
        *["W"] * (k + 1),
    ]


def numbered(actions: Sequence[str], stages: Sequence[int], first: Sequence[int]) -> list[AnyStep]:
    """The actions as steps, where these are the stages and first micro-batches of directions 0 and 1."""
    forwards, backwards = [[count(number) for number in first] for _ in range(2)]
    waiting: deque[Step] = deque()

    def forward(direction: str) -> Step:
        return Step(stages[int(direction)], F, next(forwards[int(direction)]))

    def backward(direction: str, kind: str) -> Step:
        step = Step(stages[int(direction)], kind, next(backwards[int(direction)]))
        if kind == I:
            waiting.append(step._replace(kind=W))
        return step

    steps: list[AnyStep] = []
    for action in actions:
        match tuple(action):
            case ("F", one, "&", "B", other):
                steps.append(Overlap(forward(one), backward(other, B)))
            case ("F", direction):
                steps.append(forward(direction))
            case ("W",):
                steps.append(waiting.popleft())
            case (kind, direction):
                steps.append(backward(direction, kind))
    return steps
