"""What every fused kernel is measured with: the shapes of the bench model, and the least that must be done.

A case runs both forms of one function. What stands against its time is either the FLOP of its products, or
the bytes that must come from memory and go back to it at least.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layers import DeepSeekConfig, DeepSeekModel
from tinygrad_ds.ops.decoding import linear_step
from tinygrad_ds.ops.drawing import draw_tokens
from tinygrad_ds.ops.experts import expert_order
from tinygrad_ds.tape import arrays_in
from train import AdamW, clip_grad_norm

TOKENS, HIDDEN, VOCAB, HEADS, EXPERTS, CHOSEN, WIDTH = 2048, 256, 4096, 8, 16, 4, 128
BATCH, TIME = 8, 256
ROUTER = {"num_experts_per_tok": CHOSEN, "n_group": 4, "topk_group": 2}


@dataclass
class Times:
    """Seconds of one call. Kernels without a derivative have a forward alone."""

    forward: float
    backward: float = 0.0
    moved_bytes: float = 0.0
    saved_bytes: int = 0


Call = Callable[[], Times]


@dataclass
class Case:
    """A primitive's arrays and options. flop: of the products forward and backward, 0 where there are none.

    touched: bytes that must move, where not all of the arrays must.
    """

    arrays: list[np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    flop: float = 0.0
    touched: float | None = None


def primitive_cases() -> dict[str, Callable[[], Case]]:
    """What makes a case, for every primitive that has a twin."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def angles() -> list[np.ndarray]:
        turns = draw(TIME, 8)
        return [np.cos(turns), np.sin(turns)]

    def targets() -> np.ndarray:
        return rng.integers(0, VOCAB, TOKENS)

    chosen = np.sort(rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, 1)), axis=1)[:, :CHOSEN], axis=1)
    offsets, position = expert_order(chosen, num_experts=EXPERTS)
    rows, heads = TOKENS * CHOSEN, (BATCH, HEADS, TIME)
    product = 3 * 2 * rows * HIDDEN  # FLOP of a grouped product, for each of its outputs
    table = 4 * HIDDEN * (4 * TOKENS + VOCAB)  # rows read and written twice, and the table of the gradient

    def into_experts() -> Case:
        arrays = [draw(TOKENS, HIDDEN), draw(EXPERTS, 2 * WIDTH, HIDDEN), position, offsets]
        return Case(arrays, flop=product * 2 * WIDTH)

    def out_of_experts() -> Case:
        arrays = [draw(rows, 2 * WIDTH), draw(TOKENS, CHOSEN), draw(EXPERTS, HIDDEN, WIDTH)]
        return Case([*arrays, position, offsets], flop=product * WIDTH)

    return {
        "attention": lambda: Case(
            [draw(*heads, 48), draw(*heads, 48), draw(*heads, 32)],
            flop=3 * 2 * BATCH * HEADS * TIME * TIME * (48 + 32) / 2,  # the masked half is skipped
        ),
        "combine": lambda: Case([draw(rows, HIDDEN), draw(TOKENS, CHOSEN), position]),
        "concatenate": lambda: Case(
            [draw(BATCH, TIME, HEADS, 32), draw(BATCH, TIME, HEADS, 16)], {"axis": -1}
        ),
        "cross_entropy": lambda: Case([draw(TOKENS, VOCAB), targets()]),
        "dispatch": lambda: Case([draw(TOKENS, HIDDEN), chosen], {"num_experts": EXPERTS}),
        "embedding": lambda: Case([draw(VOCAB, HIDDEN), targets()], touched=table),
        "experts_in": into_experts,
        "experts_out": out_of_experts,
        "fp8_experts_in": into_experts,
        "fp8_experts_out": out_of_experts,
        "fp8_linear": lambda: Case(
            [draw(TOKENS, HIDDEN), draw(4 * WIDTH, HIDDEN)], flop=3 * 2 * TOKENS * HIDDEN * 4 * WIDTH
        ),
        "fp8_swiglu_linear": lambda: Case(
            [draw(TOKENS, 8 * WIDTH), draw(HIDDEN, 4 * WIDTH)],
            flop=3 * 2 * TOKENS * HIDDEN * 4 * WIDTH,
        ),
        "grouped_linear": lambda: Case(
            [draw(rows, HIDDEN), draw(EXPERTS, 2 * WIDTH, HIDDEN), offsets], flop=product * 2 * WIDTH
        ),
        "linear_cross_entropy": lambda: Case(
            [draw(TOKENS, HIDDEN), draw(VOCAB, HIDDEN) / np.float32(16), targets()],
            flop=3 * 2 * TOKENS * HIDDEN * VOCAB,
        ),
        "log_softmax": lambda: Case([draw(TOKENS, VOCAB)]),
        "quantize": lambda: Case([draw(TOKENS, HIDDEN)]),
        "rmsnorm": lambda: Case([draw(TOKENS, HIDDEN), draw(HIDDEN)]),
        "rope": lambda: Case([draw(BATCH, HEADS, TIME, 16), *angles()]),
        "router_selection": lambda: Case([draw(TOKENS, EXPERTS), draw(EXPERTS)], ROUTER),
        "softmax": lambda: Case([draw(TOKENS, VOCAB)]),
        "split": lambda: Case([draw(BATCH, TIME, HEADS, 64)], {"sections": [32], "axis": -1}),
        "swiglu": lambda: Case([draw(rows, WIDTH), draw(rows, WIDTH)]),
    }


def once(pair: Any, case: Case) -> Times:
    """Forward and backward, what they read and write at least, and what is kept in between."""
    start = time.perf_counter()
    result, saved = pair.forward(*case.arrays, **case.options)
    middle = time.perf_counter()
    outputs = result if isinstance(result, tuple) else (result,)
    gradients = tuple(np.ones_like(y) if np.asarray(y).dtype.kind == "f" else None for y in outputs)
    ready = time.perf_counter()
    grads = pair.backward(saved, gradients if isinstance(result, tuple) else gradients[0])
    end = time.perf_counter()
    moved = [*case.arrays, *outputs, *case.arrays, *gradients, *grads]
    touched = case.touched or sum(np.asarray(array).nbytes for array in moved if array is not None)
    return Times(middle - start, end - ready, touched, sum(array.nbytes for array in arrays_in(saved)))


def token_call(config: dict[str, Any], batch: int, context: int) -> Call:
    """Decoding one token for every row behind `context` columns, by the whole network: no tape, no backward.

    All its layers take their turn, so that weights come from where they are when a model decodes.
    """
    model = DeepSeekModel(DeepSeekConfig.from_dict(config), seed=0)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (batch, context + 1))
    cache = model.new_cache(batch)
    model(ids[:, :-1], cache=cache)

    def call() -> Times:
        start = time.perf_counter()
        model(ids[:, -1:], cache=cache)
        seconds = time.perf_counter() - start
        cache.truncate(context)
        return Times(seconds)

    return call


def other_calls() -> dict[str, tuple[Call, float]]:
    """Functions without a derivative on their own, each with the bytes that it must read."""
    rng = np.random.default_rng(0)
    logits, weight, x = (
        rng.normal(size=shape).astype(np.float32) for shape in ((512, VOCAB), (VOCAB, HIDDEN), (1, HIDDEN))
    )
    share = rng.random(len(logits))
    return {
        "draw_tokens": (timed(lambda: draw_tokens(logits, share, temperature=1.0)), logits.nbytes),
        "linear_step": (timed(lambda: linear_step(x, weight)), weight.nbytes),
    }


def timed(function: Callable[[], Any]) -> Call:
    """A call of a function that has no backward."""

    def call() -> Times:
        start = time.perf_counter()
        function()
        return Times(time.perf_counter() - start)

    return call


def optimizer_calls(config: dict[str, Any]) -> dict[str, tuple[Call, float]]:
    """Clipping and AdamW over all parameters, each with the bytes that it must move."""
    model = DeepSeekModel(DeepSeekConfig.from_dict(config), seed=0)
    optimizer = AdamW(model, lr=1e-3)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], (1, 17))
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    size = sum(leaf.data.nbytes for leaf in model.parameters())
    return {
        "norm of all gradients": (timed(lambda: clip_grad_norm(model, np.inf)), size),  # read once
        "AdamW": (timed(optimizer.step), 7 * size),  # p, g, m, v read; p, m, v written
    }
