"""Cases for the primitives that a network is made of."""

import numpy as np

from lab.cases.making import AWAY, Case, Draw, case


@case("matmul")
def matmul(draw: Draw) -> Case:
    """Matrices, a batch of them on either side."""
    n, k, m, lead = draw.size("time"), draw.size("d"), draw.size("out"), draw.lead()[:1]
    a, b = draw.among((lead, ()), ((), lead), (lead, lead), ((1,), lead))
    return Case((draw.reals(*a, n, k), draw.reals(*b, k, m)))


@case("linear")
def linear(draw: Draw) -> Case:
    """With and without a bias."""
    inner, outer = draw.size("d"), draw.size("out")
    arrays = draw.reals(*draw.lead(), inner), draw.reals(outer, inner), draw.reals(outer)
    return Case(arrays if draw.among(True, False) else arrays[:2])


@case("einsum")
def einsum(draw: Draw) -> Case:
    """A product of two matrices, written in several ways."""
    i, j, k = draw.size("time"), draw.size("out"), draw.size("d")
    subscripts = draw.among("ik,jk->ij", "ik,jk->ji", "ik,jk->j")
    return Case((draw.reals(i, k), draw.reals(j, k)), {"subscripts": subscripts})


@case("rmsnorm")
def rmsnorm(draw: Draw) -> Case:
    """Rows of two numbers and more."""
    d = draw.size("d", least=2)
    return Case((draw.reals(*draw.lead(), d), draw.reals(d)), {"eps": draw.among(1e-6, 0.1, 1.0)})


@case("swiglu")
def swiglu(draw: Draw) -> Case:
    """Two arrays of one shape."""
    shape = draw.shape()
    return Case((draw.reals(*shape), draw.reals(*shape)))


@case("rope")
def rope(draw: Draw) -> Case:
    """(time, heads, d) with the angles of the positions."""
    time, half = draw.size("time"), max(draw.size("head") // 2, 1) if draw.sizes else draw.size("")
    angle = draw.reals(time, 1, half, low=0.2, high=1.4)
    x = draw.reals(time, draw.size("heads"), 2 * half)
    return Case((x, np.cos(angle), np.sin(angle)), {"interleaved": draw.among(True, False)})


@case("attention")
def attention(draw: Draw) -> Case:
    """Causal or not, grouped heads, a scale of its own."""
    batch = 1 if draw.sizes and draw.sizes["heads"] == 1 else draw.size("batch")
    kv_heads, group = draw.size("heads"), draw.size("group")
    time_q, d, d_v = draw.size("time"), draw.size("head"), draw.size("head")
    time_k = time_q if draw.sizes else time_q + draw.size("") - 1
    q = draw.reals(batch, kv_heads * group, time_q, d)
    k, v = draw.reals(batch, kv_heads, time_k, d), draw.reals(batch, kv_heads, time_k, d_v)
    return Case((q, k, v), {"causal": draw.among(True, False), "scale": draw.among(None, 0.7)})


@case("router_selection")
def router_selection(draw: Draw) -> Case:
    """Logits no two of which are close, so that no choice hangs by a thread."""
    tokens, experts = draw.size("time"), draw.size("experts", least=2)
    chosen = draw.size("chosen") if draw.sizes else 1 + int(draw.random.integers(experts))
    logits = np.stack([AWAY * 4 * draw.random.permutation(experts) - 0.5 for _ in range(tokens)])
    options = {
        "num_experts_per_tok": chosen,
        "norm_topk_prob": draw.among(True, False),
        "routed_scaling_factor": draw.among(2.5, 1.0),
    }
    return Case((logits, np.zeros(experts)), options)


@case("dispatch")
def dispatch(draw: Draw) -> Case:
    """Tokens with different experts."""
    tokens, experts = draw.size("time"), draw.size("experts", least=2)
    chosen = draw.choices(tokens, experts, draw.among(2, 1))
    return Case((draw.reals(tokens, draw.size("d")), chosen), {"num_experts": experts})


@case("grouped_linear")
def grouped_linear(draw: Draw) -> Case:
    """Rows of experts, of which one may have none."""
    experts, inner, outer = draw.size("experts"), draw.size("d"), draw.size("out")
    counts = [draw.among(draw.size("time"), 0, 1, 2) for _ in range(experts)]
    offsets = np.cumsum([0, *counts])
    return Case((draw.reals(sum(counts), inner), draw.reals(experts, outer, inner), offsets))


@case("combine")
def combine(draw: Draw) -> Case:
    """Every row read once."""
    tokens, chosen = draw.size("time"), draw.size("chosen")
    rows = draw.reals(tokens * chosen, draw.size("d"))
    position = draw.random.permutation(tokens * chosen).reshape(tokens, chosen)
    return Case((rows, draw.reals(tokens, chosen, low=0.1, high=1.0), position))


def sorted_rows(draw: Draw) -> tuple[np.ndarray, np.ndarray, int]:
    """position (N, K) and offsets (E + 1,) of tokens with different experts each, and E."""
    tokens, experts = draw.size("time"), draw.size("experts", least=2)
    chosen = draw.choices(tokens, experts, draw.among(2, 1))
    order = np.argsort(chosen, axis=None, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(chosen.size)
    counts = np.bincount(chosen.ravel(), minlength=experts)
    return position.reshape(chosen.shape), np.cumsum([0, *counts]), experts


@case("experts_in")
def experts_in(draw: Draw) -> Case:
    """Every token's row times the matrices of its experts."""
    position, offsets, experts = sorted_rows(draw)
    d, out = draw.size("d"), draw.size("out")
    return Case((draw.reals(len(position), d), draw.reals(experts, out, d), position, offsets))


@case("experts_out")
def experts_out(draw: Draw) -> Case:
    """Both halves of the hidden layer, and what each expert counts."""
    position, offsets, experts = sorted_rows(draw)
    d, width = draw.size("d"), draw.size("head")
    gate_up = draw.reals(position.size, 2 * width)
    weights = draw.reals(*position.shape, low=0.1, high=1.0)
    return Case((gate_up, weights, draw.reals(experts, d, width), position, offsets))


def some_targets(draw: Draw) -> tuple[np.ndarray, int]:
    """Targets, some of them ignored but at least one not, and how many classes there are."""
    rows, classes = draw.lead() or (1,), draw.size("vocab", least=2)
    targets = draw.integers(0, classes - 1, *rows)
    if draw.sizes is None:
        targets[draw.random.random(rows) < 0.25] = -100
        targets.flat[0] = classes - 1
    return targets, classes


@case("cross_entropy")
def cross_entropy(draw: Draw) -> Case:
    """Rows that count and rows that do not."""
    targets, classes = some_targets(draw)
    options = {"reduction": draw.among("mean", "sum", "none")}
    return Case((draw.reals(*targets.shape, classes), targets), options)


@case("linear_cross_entropy")
def linear_cross_entropy(draw: Draw) -> Case:
    """The same with the head's product in front."""
    targets, classes = some_targets(draw)
    d = draw.size("d")
    options = {"reduction": draw.among("mean", "sum")}
    return Case((draw.reals(*targets.shape, d), draw.reals(classes, d), targets), options)
