"""The router of a mixture of experts: which experts a token goes to, and how much each of them counts.

Reference form; the fused twin is in kernels/cpu/moe.py.
"""

from types import ModuleType
from typing import NamedTuple

from tinygrad_ds.device import Array, namespace
from tinygrad_ds.ops.activation import logistic, softmax
from tinygrad_ds.primitive import primitive

# The ways to choose that go with each scoring function, the usual one first.
TOPK_METHODS = {"sigmoid": ("noaux_tc",), "softmax": ("greedy", "group_limited_greedy")}


class RouterSelection(NamedTuple):
    """What a router decides for N tokens."""

    weights: Array  # (N, K)  what each chosen expert's output is multiplied with
    indices: Array  # (N, K)  the chosen experts, ascending
    scores: Array  # (N, E)  the scores of all experts, for balance losses


class RouterSelectionSaved(NamedTuple):
    """What the backward reads. The weights are quickly computed again."""

    scores: Array  # (N, E)
    indices: Array  # (N, K)
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    arrays: int  # 2 where a bias was given, else 1


@primitive
def router_selection(
    logits,
    bias=None,
    *,
    num_experts_per_tok,
    n_group=1,
    topk_group=1,
    scoring_func="sigmoid",
    topk_method=None,
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    chosen=None,
):
    """Choose K = num_experts_per_tok experts for every token, and how much each of them counts.

    logits (N, E), bias (E,) or left out -> RouterSelection(weights (N, K), indices (N, K), scores (N, E)).

    DeepSeek-V3 (2412.19437, section 2.1.2): scoring_func "sigmoid", topk_method "noaux_tc"
        s_e      = sigmoid(z_e)
        choice_e = s_e + b_e                  the bias steers the choice and is part of nothing else
        A group's score is the sum of its 2 best choices; outside the topk_group best groups choice is -inf.
        w_e      = c s_e / (sum over the chosen of s + 1e-20),  c = routed_scaling_factor;
                   without the division if not norm_topk_prob
    DeepSeek-V2 (2405.04434, section 2.2): scoring_func "softmax"; the bias is not read
        s        = softmax(z), choice = s
        topk_method "greedy", the usual one, has no groups. With "group_limited_greedy" a group's score is its
        best choice; outside the topk_group best groups choice is 0.
        w_e      = c s_e                      never divided
    The K best choices win; where choices or groups are equal, the lower index does. chosen (N, K), no expert
    twice in a row: experts that were chosen before stand in place of the best, to compute the same again.

    Raises ValueError for options that no choice can meet.
    """
    topk_method, n_group, topk_group = settled(
        logits.shape[-1], num_experts_per_tok, n_group, topk_group, scoring_func, topk_method, norm_topk_prob
    )
    c = float(routed_scaling_factor)
    xp = namespace(logits)

    if scoring_func == "sigmoid":
        scores = logistic(logits)
        choice = scores if bias is None else scores + bias
    else:
        scores = choice = softmax.forward(logits)[0]
    if chosen is None:
        if n_group > 1:
            choice = _best_groups_only(xp, choice, n_group, topk_group, topk_method)
        chosen = _best(xp, choice, num_experts_per_tok)
    elif chosen.shape != (len(logits), num_experts_per_tok):
        raise ValueError(
            f"chosen has shape {chosen.shape} but {len(logits)} tokens have {num_experts_per_tok} experts"
        )
    indices = xp.sort(chosen, axis=-1)

    t = xp.take_along_axis(scores, indices, axis=-1)  # (N, K)
    weights = c * t / (t.sum(axis=-1, keepdims=True) + 1e-20) if norm_topk_prob else c * t
    arrays = 1 if bias is None else 2
    saved = RouterSelectionSaved(scores, indices, scoring_func, norm_topk_prob, c, arrays)
    return RouterSelection(weights.astype(logits.dtype, copy=False), indices, scores), saved


@router_selection.backward
def router_selection_backward(saved, g):
    """From g = dL/dweights and h = dL/dscores to dL/dlogits.

    The choice is locally constant: a small change of the logits changes no index. So the indices have no
    gradient, the bias, which steers the choice alone, gets none, and groups do not matter here.

    With t_k the chosen scores, D = sum_k t_k + 1e-20 and w_k = c t_k / D:
        dw_j/dt_k = c [j = k] / D - c t_j / D^2 = (c [j = k] - w_j) / D
        dL/dt_k   = (c g_k - sum_j g_j w_j) / D
    sum_k t_k dL/dt_k is zero (but for the 1e-20), for scaling all chosen scores changes nothing.
    Without the division w_k = c t_k, so dL/dt_k = c g_k.

    The score of a chosen expert e = indices_k reaches the loss as t_k and directly, any other only directly:
        dL/ds_e = h_e + dL/dt_k        or        dL/ds_e = h_e

    sigmoid:  ds_e/dz_e = s_e (1 - s_e),           dL/dz_e = dL/ds_e s_e (1 - s_e)
    softmax:  ds_j/dz_e = s_j ([j = e] - s_e),     dL/dz_e = s_e (dL/ds_e - sum_j s_j dL/ds_j)
    """
    scores, indices, scoring_func, norm_topk_prob, c, arrays = saved
    g_weights, _, h = g
    xp = namespace(scores)
    grad_scores = xp.zeros_like(scores) if h is None else h.copy()
    if g_weights is not None:
        grad_t = c * g_weights
        if norm_topk_prob:
            t = xp.take_along_axis(scores, indices, axis=-1)  # (N, K)
            total = t.sum(axis=-1, keepdims=True) + 1e-20
            weights = c * t / total
            grad_t = (grad_t - (g_weights * weights).sum(axis=-1, keepdims=True)) / total
        grad_scores[xp.arange(len(scores))[:, None], indices] += (
            grad_t  # no expert is chosen twice by a token
        )
    if scoring_func == "sigmoid":
        grad_logits = grad_scores * scores * (1 - scores)
    else:
        grad_logits = scores * (grad_scores - (scores * grad_scores).sum(axis=-1, keepdims=True))
    return (grad_logits, None)[:arrays]


def _best(xp: ModuleType, values: Array, count: int) -> Array:
    """Where the `count` largest along the last axis are; of equal ones the lower index comes first."""
    return xp.argsort(-values, axis=-1, kind="stable")[..., :count]


def _best_groups_only(
    xp: ModuleType, choice: Array, n_group: int, topk_group: int, topk_method: str
) -> Array:
    """`choice`, changed so that only the experts of each token's best groups can win."""
    tokens, experts = choice.shape
    grouped = choice.reshape(tokens, n_group, experts // n_group)
    summed, lost = (2, -xp.inf) if topk_method == "noaux_tc" else (1, 0)
    group_scores = xp.sort(grouped, axis=-1)[..., -summed:].sum(axis=-1)  # (N, n_group)
    kept = xp.zeros((tokens, n_group), dtype=bool)
    kept[xp.arange(tokens)[:, None], _best(xp, group_scores, topk_group)] = True
    return xp.where(kept[:, :, None], grouped, xp.full_like(grouped, lost)).reshape(choice.shape)


def settled(
    experts: int,
    num_experts_per_tok: int,
    n_group: int,
    topk_group: int,
    scoring_func: str,
    topk_method: str | None,
    norm_topk_prob: bool,
) -> tuple[str, int, int]:
    """topk_method, n_group and topk_group as they are meant, once all options are known to fit together."""
    topk_method = topk_method or TOPK_METHODS.get(scoring_func, ("",))[0]
    if topk_method == "greedy":
        n_group = topk_group = 1
    check_scoring(scoring_func, topk_method, norm_topk_prob)
    check_counts(experts, num_experts_per_tok, n_group, topk_group, topk_method)
    return topk_method, n_group, topk_group


def check_scoring(scoring_func: str, topk_method: str, norm_topk_prob: bool) -> None:
    """Raise ValueError for a way to choose that no published router has."""
    if scoring_func not in TOPK_METHODS:
        raise ValueError(f"scoring_func is {scoring_func!r} but must be {' or '.join(TOPK_METHODS)}")
    fitting = TOPK_METHODS[scoring_func]
    if topk_method not in fitting:
        raise ValueError(
            f"topk_method is {topk_method!r} but with scoring_func {scoring_func!r} it must be "
            f"{' or '.join(fitting)}"
        )
    if scoring_func == "softmax" and norm_topk_prob:
        raise ValueError("norm_topk_prob is true but softmax scores are never normalised: set it to false")


def check_counts(
    experts: int, num_experts_per_tok: int, n_group: int, topk_group: int, topk_method: str
) -> None:
    """Raise ValueError for numbers of experts and groups that contradict each other."""
    if n_group < 1 or experts % n_group:
        raise ValueError(f"n_group is {n_group} but must divide the number of experts, {experts}")
    if not 1 <= topk_group <= n_group:
        raise ValueError(f"topk_group is {topk_group} but of {n_group} groups 1 to {n_group} can stay")
    size = experts // n_group
    if n_group > 1 and size < 2 and topk_method == "noaux_tc":
        raise ValueError(
            f"n_group is {n_group} for {experts} experts, but a group is judged by its 2 best experts: "
            f"at most {experts // 2} groups"
        )
    if num_experts_per_tok < 1:
        raise ValueError(f"num_experts_per_tok is {num_experts_per_tok} but must be at least 1")
    if num_experts_per_tok > topk_group * size:
        limit = f"only {topk_group} of {n_group} groups of {size} experts stay: at most {topk_group * size}"
        if n_group == 1:
            limit = f"there are {experts} experts: at most {experts}"
        raise ValueError(f"num_experts_per_tok is {num_experts_per_tok} but {limit}")
