"""Cases for ops/routing.py and ops/moe.py."""

import numpy as np
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import MARGIN, Case, composition, reals, strategy
from tinygrad_ds.ops.moe import Dispatched
from tinygrad_ds.ops.routing import RouterSelection

METHODS = [("sigmoid", None), ("sigmoid", "noaux_tc"), ("softmax", None), ("softmax", "group_limited_greedy")]


def scores_of(logits, scoring_func):
    if scoring_func == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def choose(values, count):
    """The indices of the `count` largest, the lower first where they are equal, and by how much they won."""
    order = sorted(range(len(values)), key=lambda e: (-values[e], e))
    margin = np.inf if count == len(values) else values[order[count - 1]] - values[order[count]]
    return order[:count], margin


def route(
    scores, bias, *, num_experts_per_tok, n_group=1, topk_group=1, scoring_func="sigmoid", topk_method=None
):
    """One token's experts, ascending, and the margin of its closest decision. Step by step."""
    sigmoid = scoring_func == "sigmoid"
    choice = scores + bias if sigmoid else scores.copy()
    margin = np.inf
    if sigmoid or topk_method == "group_limited_greedy":
        groups = np.split(choice, n_group)
        judged = [sum(sorted(group)[-2:]) if sigmoid else max(group) for group in groups]
        kept, margin = choose(judged, topk_group)
        for number, group in enumerate(groups):  # views of choice
            if number not in kept:
                group[:] = -np.inf if sigmoid else 0
    chosen, margin_of_choice = choose(choice, num_experts_per_tok)
    return sorted(chosen), min(margin, margin_of_choice)


@strategy("router_selection")
@st.composite
def router_selection_cases(draw):
    """Options of a router that fit together, and logits and bias with no decision closer than MARGIN."""
    scoring_func, topk_method = draw(st.sampled_from(METHODS))
    n_group, size = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    topk_group = draw(st.integers(1, n_group))
    options = {
        "num_experts_per_tok": draw(st.integers(1, topk_group * size)),
        "n_group": n_group,
        "topk_group": topk_group,
        "scoring_func": scoring_func,
        "topk_method": topk_method,
    }
    tokens, experts, biased = draw(st.integers(0, 4)), n_group * size, draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bias = 0.2 * rng.normal(size=experts) * biased
    logits = np.zeros((tokens, experts))
    for n in range(tokens):
        margin = 0.0
        while margin < MARGIN:
            logits[n] = 2 * rng.normal(size=experts)
            margin = route(scores_of(logits[n], scoring_func), bias, **options)[1]
    if draw(st.integers(0, 3)) == 0:  # what some earlier pass chose
        count = options["num_experts_per_tok"]
        earlier = [rng.permutation(experts)[:count] for _ in range(tokens)]
        options["chosen"] = np.array(earlier, dtype=np.int64).reshape(tokens, count)
    options["norm_topk_prob"] = scoring_func == "sigmoid" and draw(st.booleans())
    options["routed_scaling_factor"] = draw(st.sampled_from([1.0, 2.5]))
    return Case((logits, bias) if biased else (logits,), options)


@composition("router_selection")
def router_selection_composed(
    logits, bias=None, *, norm_topk_prob, routed_scaling_factor, chosen=None, **options
):
    sigmoid = options["scoring_func"] == "sigmoid"
    scores = tg.sigmoid(logits) if sigmoid else tg.softmax(logits, axis=-1)
    offset = 0.0 if bias is None else bias.data
    if chosen is None:
        chosen = [route(row, offset, **options)[0] for row in scores.data]
    indices = np.array(chosen, dtype=np.int64).reshape(len(chosen), options["num_experts_per_tok"])
    indices = np.sort(indices, axis=-1)
    weights = tg.take_along_axis(scores, indices, axis=-1)
    if norm_topk_prob:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return RouterSelection(weights * routed_scaling_factor, tg.Tensor(indices), scores)


@st.composite
def choices(draw, tokens, experts):
    """(tokens, K) experts, different within a row, in any order; some experts may be chosen by nobody."""
    count = draw(st.integers(1, experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = [rng.permutation(experts)[:count] for _ in range(tokens)]
    return np.array(rows, dtype=np.int64).reshape(tokens, count)


@strategy("dispatch")
@st.composite
def dispatch_cases(draw):
    tokens, experts = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    x = draw(reals((tokens, draw(st.integers(0, 3)))))
    return Case((x, draw(choices(tokens, experts))), {"num_experts": experts})


@composition("dispatch")
def dispatch_composed(x, indices, *, num_experts):
    pairs = list(np.ndindex(indices.shape))
    pairs.sort(key=lambda pair: indices.data[pair])  # stable: tokens stay in order within an expert
    position = np.zeros(indices.shape, dtype=np.int64)
    for row, pair in enumerate(pairs):
        position[pair] = row
    offsets = np.array([(indices.data < e).sum() for e in range(num_experts + 1)])
    sources = np.array([n for n, _ in pairs], dtype=np.int64)
    return Dispatched(x[sources], tg.Tensor(offsets), tg.Tensor(position))


@strategy("grouped_linear")
@st.composite
def grouped_linear_cases(draw):
    counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    inner, outer = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    offsets = np.cumsum([0, *counts])
    return Case((draw(reals((sum(counts), inner))), draw(reals((len(counts), outer, inner))), offsets))


@composition("grouped_linear")
def grouped_linear_composed(rows, weight, offsets):
    cuts = offsets.data.tolist()
    products = [rows[cuts[e] : cuts[e + 1]] @ weight[e].swapaxes(0, 1) for e in range(len(weight.data))]
    return tg.concatenate(products, axis=0)


@strategy("combine")
@st.composite
def combine_cases(draw):
    tokens, chosen, unread = draw(st.integers(0, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    rows = draw(reals((tokens * chosen + unread, draw(st.integers(0, 3)))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    position = rng.permutation(len(rows))[: tokens * chosen].reshape(tokens, chosen)
    return Case((rows, draw(reals((tokens, chosen))), position))


@composition("combine")
def combine_composed(rows, weights, position):
    return (rows[position.data] * tg.expand_dims(weights, -1)).sum(axis=1)
