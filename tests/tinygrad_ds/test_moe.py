"""Mixture of experts: routing by its definition, and the whole way against one token at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.tinygrad_ds.harness import STRATEGIES
from tests.tinygrad_ds.strategies.moe import route, scores_of
from tinygrad_ds.dtypes import dtype


@pytest.fixture(params=["reference", "fused"], autouse=True, scope="module")
def kernels(request):
    with tg.using(kernels=request.param):
        yield request.param


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def moe(x, logits, bias, weight, **options):
    """One matrix for each expert: tensors in, tensor out."""
    chosen = tg.router_selection(logits, bias, **options)
    sent = tg.dispatch(x, chosen.indices, num_experts=logits.shape[1])
    return tg.combine(tg.grouped_linear(sent.rows, weight, sent.offsets), chosen.weights, sent.position)


ROUTER = {"num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}


def inputs(tokens=9, experts=8, d=5, d_out=4):
    return draw(tokens, d), draw(tokens, experts), 0.1 * draw(experts), draw(experts, d_out, d)


def test_equals_a_loop_over_tokens_and_experts():
    x, logits, bias, weight = inputs()
    y = moe(x, logits, bias, weight, **ROUTER).data
    options = {name: ROUTER[name] for name in ("num_experts_per_tok", "n_group", "topk_group")}
    for n in range(len(x)):
        s = 1 / (1 + np.exp(-logits[n]))
        experts, _ = route(s, bias, **options)
        expected = sum(2.5 * s[e] / s[experts].sum() * weight[e] @ x[n] for e in experts)
        assert np.allclose(y[n], expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_whole_way():
    x, logits, bias, weight = inputs(tokens=4)
    report = tg.gradcheck(lambda x, z, w: moe(x, z, bias, w, **ROUTER), x, logits, weight)
    assert report.passed, report


def test_permuted_tokens_give_permuted_outputs():
    x, logits, bias, weight = inputs()
    order = np.random.default_rng(1).permutation(len(x))
    y = moe(x, logits, bias, weight, **ROUTER).data
    assert np.allclose(moe(x[order], logits[order], bias, weight, **ROUTER).data, y[order], rtol=1e-12)


def test_renamed_experts_give_the_same_outputs():
    x, logits, bias, weight = inputs()
    order = np.array([5, 4, 1, 0, 3, 2, 6, 7])  # whole groups of two change places, and some within
    y = moe(x, logits, bias, weight, **ROUTER).data
    renamed = moe(x, logits[:, order], bias[order], weight[order], **ROUTER).data
    assert np.allclose(renamed, y, rtol=1e-12)


def test_identical_experts_are_one_dense_layer():
    """The normalised weights sum to the scaling factor, so nothing is left of the routing."""
    x, logits, bias, weight = inputs()
    y = moe(x, logits, bias, np.repeat(weight[:1], 8, axis=0), **ROUTER).data
    assert np.allclose(y, 2.5 * x @ weight[0].T, rtol=1e-12)


def test_every_row_comes_back():
    """Weights of 1 and no product: the sum over a token's experts is its row, K times. Nothing is dropped."""
    x, indices = draw(11, 3), np.argsort(draw(11, 6), axis=1)[:, :4]
    sent = tg.dispatch(x, indices, num_experts=6)
    assert np.allclose(tg.combine(sent.rows, np.ones((11, 4)), sent.position).data, 4 * x)
    counts = np.diff(sent.offsets.data)
    assert counts.sum() == 44 and [*counts] == [(indices == e).sum() for e in range(6)]
    for e, (start, stop) in enumerate(zip(sent.offsets.data, sent.offsets.data[1:])):
        tokens = np.nonzero((indices == e).any(axis=1))[0]
        assert np.array_equal(sent.rows.data[start:stop], x[tokens])


@given(data=st.data())
def test_the_choice_is_that_of_the_definition(data):
    case = data.draw(STRATEGIES["router_selection"])
    options = dict(case.options)
    options.pop("routed_scaling_factor"), options.pop("chosen", None)
    norm = options.pop("norm_topk_prob")
    logits, bias = (*case.arrays, 0.0)[:2]
    chosen = tg.router_selection(*case.arrays, **case.options | {"chosen": None})
    for n, row in enumerate(logits):
        assert [*chosen.indices.data[n]] == route(scores_of(row, options["scoring_func"]), bias, **options)[0]
    if norm:
        assert np.allclose(chosen.weights.data.sum(axis=1), case.options["routed_scaling_factor"])


V2 = {"scoring_func": "softmax", "norm_topk_prob": False}
GROUPED_V2 = {**V2, "topk_method": "group_limited_greedy"}


@pytest.mark.parametrize(
    ("logits", "bias", "options", "expected"),
    [
        ([1, 1, 1, 1], None, {"num_experts_per_tok": 2}, [0, 1]),
        ([0, 1, 2, 1], None, {"num_experts_per_tok": 2}, [1, 2]),
        ([0, 1, 2, 1], None, {"num_experts_per_tok": 2, **V2}, [1, 2]),
        ([0, 3, 3, 0, 0, 1], None, {"num_experts_per_tok": 1, "n_group": 3, "topk_group": 1}, [1]),
        ([0, 0, 2, 1, 1, 2], None, {"num_experts_per_tok": 1, "n_group": 3, "topk_group": 1}, [2]),
        (
            [0, 0, 1, 2, 2, 1],
            None,
            {"num_experts_per_tok": 2, "n_group": 3, "topk_group": 1, **GROUPED_V2},
            [2, 3],
        ),
        ([1, 2, 3, 4], [3, 2, 1, 0], {"num_experts_per_tok": 2}, [0, 1]),
        ([1, 2, 3, 4], [3, 2, 1, 0], {"num_experts_per_tok": 2, **V2}, [2, 3]),  # no bias with softmax
        ([-900, -900, -900, 0], None, {"num_experts_per_tok": 2, **V2}, [0, 3]),  # scores of exactly 0
    ],
)
def test_ties_go_to_the_lower_index(logits, bias, options, expected):
    arrays = [np.array([logits], dtype=np.float64)]
    if bias is not None:
        arrays.append(np.array(bias, dtype=np.float64))
    for kind in (np.float32, np.float64):
        chosen = tg.router_selection(*(array.astype(kind) for array in arrays), **options)
        assert chosen.indices.data.tolist() == [expected]


def test_groups_are_judged_by_their_two_best_or_by_their_best():
    """Group 0 has the best expert, group 1 the two best together."""
    logits = np.array([[3.0, -3.0, 1.0, 1.5]])
    options = {"num_experts_per_tok": 1, "n_group": 2, "topk_group": 1}
    assert tg.router_selection(logits, **options).indices.data.tolist() == [[3]]
    assert tg.router_selection(logits, **options, **GROUPED_V2).indices.data.tolist() == [[0]]
    assert tg.router_selection(logits, num_experts_per_tok=1, **V2).indices.data.tolist() == [[0]]


def test_bias_steers_the_choice_and_nothing_else():
    logits, bias = draw(6, 8), tg.Tensor(np.zeros(8), requires_grad=True)
    free = tg.router_selection(logits, bias, num_experts_per_tok=3)
    bias.data[5] = 10.0
    steered = tg.router_selection(tg.Tensor(logits, requires_grad=True), bias, num_experts_per_tok=3)
    assert (steered.indices.data == 5).any(axis=1).all() and not (free.indices.data == 5).any(axis=1).all()
    assert np.array_equal(steered.scores.data, free.scores.data)
    taken = np.take_along_axis(free.scores.data, steered.indices.data, axis=1)
    assert np.allclose(steered.weights.data, taken / taken.sum(axis=1, keepdims=True), rtol=1e-12)
    steered.weights.sum().backward()
    assert bias.grad is None


def test_what_was_chosen_before_is_taken_as_it_was():
    """The same experts give the same weights and gradients; other ones their own scores."""
    logits, cotangent = draw(6, 8), draw(6, 3)
    results = []
    for chosen in (None, tg.router_selection(logits, num_experts_per_tok=3).indices.data[:, ::-1]):
        x = tg.Tensor(logits, requires_grad=True)
        made = tg.router_selection(x, num_experts_per_tok=3, chosen=chosen)
        (made.weights * cotangent).sum().backward()
        results.append((made.indices.data, made.weights.data, x.grad))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    first = np.tile(np.arange(3), (6, 1))
    made = tg.router_selection(logits, num_experts_per_tok=3, chosen=first)
    s = made.scores.data[:, :3]
    np.testing.assert_allclose(made.weights.data, s / s.sum(axis=1, keepdims=True), rtol=1e-12)
    with pytest.raises(ValueError, match=r"chosen has shape \(6, 3\) but 6 tokens have 2 experts"):
        tg.router_selection(logits, num_experts_per_tok=2, chosen=first)


def test_scaling_all_chosen_scores_changes_no_weight():
    """The derivation's property: the gradient of normalised weights is orthogonal to the chosen scores."""
    logits = tg.Tensor(draw(5, 6), requires_grad=True)
    chosen = tg.router_selection(logits, num_experts_per_tok=3, routed_scaling_factor=2.5)
    (chosen.weights * draw(5, 3)).sum().backward()
    s = chosen.scores.data
    grad_scores = logits.grad / (s * (1 - s))
    assert np.abs((grad_scores * s).sum(axis=1)).max() < 1e-12 * np.abs(grad_scores).max()
    unchosen = np.ones((5, 6), dtype=bool)
    np.put_along_axis(unchosen, chosen.indices.data, False, axis=1)
    assert not logits.grad[unchosen].any() and logits.grad[~unchosen].all()


def test_experts_without_rows_have_zero_gradient():
    weight = tg.Tensor(draw(4, 3, 2), requires_grad=True)
    tg.grouped_linear(draw(5, 2), weight, np.array([0, 0, 3, 3, 5])).sum().backward()
    assert [bool(g.any()) for g in weight.grad] == [False, True, False, True]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"num_experts_per_tok": 9, "n_group": 4, "topk_group": 2},
            "only 2 of 4 groups of 4 experts stay: at most 8",
        ),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok is 17 but there are 16 experts: at most 16"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0 but must be at least 1"),
        ({"num_experts_per_tok": 1, "n_group": 3}, "n_group is 3 but must divide the number of experts, 16"),
        ({"num_experts_per_tok": 1, "n_group": 4, "topk_group": 5}, "topk_group is 5 but of 4 groups 1 to 4"),
        ({"num_experts_per_tok": 1, "n_group": 16}, "judged by its 2 best experts: at most 8 groups"),
        (
            {"num_experts_per_tok": 1, "scoring_func": "tanh"},
            "scoring_func is 'tanh' but must be sigmoid or softmax",
        ),
        ({"num_experts_per_tok": 1, "topk_method": "greedy"}, "'sigmoid' it must be noaux_tc"),
        ({"num_experts_per_tok": 1, "scoring_func": "softmax"}, "norm_topk_prob is true"),
    ],
)
def test_impossible_options_are_refused_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tg.router_selection(draw(2, 16), **options)


def test_the_gradient_knows_the_term_that_keeps_the_division_finite():
    """Scores of some 1e-20, as small as what is added to their sum: scaling them does change the weights."""
    logits = np.array([[-46.0, -46.5, -45.0, -47.0]])
    report = tg.gradcheck(tg.router_selection, logits, np.zeros(4), num_experts_per_tok=2)
    assert report.passed and report.checked == 4, report
    weights = tg.router_selection(logits, np.zeros(4), num_experts_per_tok=2).weights.data
    assert 0.5 < weights.sum() < 0.9


def test_impossible_indices_and_offsets_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="indices reach from -1 to 2, but experts are numbered 0 to 3"):
        tg.dispatch(draw(2, 3), np.array([[0, 2], [-1, 1]]), num_experts=4)
    with pytest.raises(ValueError, match="indices reach from 0 to 4"):
        tg.dispatch(draw(2, 3), np.array([[0, 2], [4, 1]]), num_experts=4)
    for offsets, sentence in (
        ([0, 2, 5], "has 3 entries but 3 experts need 4"),
        ([0, 2, 1, 5], "must rise from 0 to the number of rows, 5"),
        ([0, 2, 3, 4], "must rise from 0"),
        ([1, 2, 3, 5], "must rise from 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tg.grouped_linear(draw(5, 2), draw(3, 4, 2), np.array(offsets))


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_narrow_formats_are_kept(narrow):
    x, logits, bias, weight = (array.astype(dtype(narrow)) for array in inputs())
    x, logits, weight = (tg.Tensor(array, requires_grad=True) for array in (x, logits, weight))
    y = moe(x, logits, bias, weight, **ROUTER)
    y.sum().backward()
    assert {t.dtype for t in (y, x.grad, logits.grad, weight.grad)} == {dtype(narrow)}
    exact = moe(*(array.astype(np.float64) for array in (x.data, logits.data, bias, weight.data)), **ROUTER)
    assert np.abs(y.data.astype(np.float64) - exact.data).max() < 0.05 * np.abs(exact.data).max()
