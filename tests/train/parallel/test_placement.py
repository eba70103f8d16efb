import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ds as tg
from layers import DeepSeekModel
from tests.train.tiny import CONFIG, tiny_rows
from train.errors import UserError
from train.parallel.placement import Hosts, busiest, kept_in_place, pack, place_experts, rank_loads, replicate


@st.composite
def problems(draw):
    """Loads, and hosts that fit them."""
    nodes, per_node = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    groups, size = nodes * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    ranks, experts = nodes * per_node, groups * size
    slots = draw(st.integers(-(-experts // ranks), experts // nodes))  # of a rank: at most its node's experts
    loads = np.array(draw(st.lists(st.integers(0, 1000), min_size=experts, max_size=experts)), dtype=float)
    return loads, Hosts(ranks, nodes, slots * ranks - experts), groups


@given(problems())
def test_every_expert_has_a_place_and_no_rank_has_one_twice(problem):
    loads, hosts, groups = problem
    placement = place_experts(loads, hosts, groups)
    slots = (len(loads) + hosts.redundant) // hosts.ranks
    assert [len(experts) for experts in placement] == [slots] * hosts.ranks
    assert {e for experts in placement for e in experts} == set(range(len(loads)))
    assert all(len(set(experts)) == slots for experts in placement)
    np.testing.assert_allclose(rank_loads(loads, placement).sum(), loads.sum())
    node_of: dict[int, int] = {}
    for rank, experts in enumerate(placement):
        node = rank // (hosts.ranks // hosts.nodes)
        assert all(node_of.setdefault(e // (len(loads) // groups), node) == node for e in experts)


def test_copies_even_out_what_placing_alone_cannot():
    """One expert with half of all tokens: on any rank it is too much for one, but not for two."""
    loads = np.array([700.0, 100, 100, 100, 100, 100, 100, 100])
    numbered = [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert busiest(loads, numbered) == pytest.approx(800 / 350)
    assert busiest(loads, place_experts(loads, Hosts(4))) == pytest.approx(800 / 350)
    assert busiest(loads, place_experts(loads, Hosts(4, redundant=4))) < 1.25


def test_placing_evens_out_uneven_loads():
    loads = np.array([8.0, 7, 6, 5, 4, 3, 2, 1])
    assert busiest(loads, [[0, 1], [2, 3], [4, 5], [6, 7]]) == pytest.approx(15 / 9)
    assert busiest(loads, place_experts(loads, Hosts(4))) == 1.0


def test_tokens_reach_no_more_nodes_than_groups():
    """Node-limited routing: a token chooses experts of `topk_group` groups, and a group lives on one node."""
    config = CONFIG.replace(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3)
    model = DeepSeekModel(config.replace(initializer_range=0.5), dtype="float64")
    with tg.using(kernels="reference"):
        model.losses(*tiny_rows(16), mtp_weight=0.3)
    for name, moe in model.moe_layers().items():
        placement = place_experts(moe.load.astype(float), Hosts(8, nodes=4, redundant=8), n_group=4)
        node = {e: rank // 2 for rank, experts in enumerate(placement) for e in experts}
        reached = np.vectorize(node.get)(moe.chosen)  # (batch, time, K)
        nodes = [len(set(each)) for each in reached.reshape(-1, 3).tolist()]
        assert max(nodes) == 2, name
        np.testing.assert_array_equal(nodes, moe.groups_reached().reshape(-1))


def test_copies_go_to_who_is_busiest_and_no_further_than_ranks():
    assert replicate(np.array([6.0, 1.0, 3.0]), 3, limit=4) == [3, 1, 2]
    assert replicate(np.array([6.0, 0.0]), 2, limit=2) == [2, 2]


def test_packing_moves_an_item_where_a_kind_would_meet_itself():
    """Three of kind 0 need three packs, whatever is lightest."""
    kinds = [1, 2, 0, 0, 0, 3]
    packs = pack(np.array([9.0, 9.0, 1.0, 1.0, 1.0, 0.0]), 3, kinds)
    assert all(len({kinds[i] for i in items}) == 2 for items in packs)


@pytest.mark.parametrize(
    ("experts", "hosts", "sentence"),
    [
        (8, Hosts(3), "8 experts and 0 copies make 8, which 3 ranks cannot share evenly"),
        (8, Hosts(4, nodes=3), "4 ranks with experts cannot be 3 equal nodes"),
        (2, Hosts(2, redundant=4), "redundant_experts is 4, .* at most 2"),
        (4, Hosts(4, nodes=2, redundant=8), "redundant_experts is 8, .* at most 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(experts, hosts, sentence):
    with pytest.raises(UserError, match=sentence):
        place_experts(np.ones(experts), hosts, n_group=2)


@given(problems(), st.randoms())
def test_packs_stay_with_the_ranks_that_have_them(problem, random):
    """The same placement with ranks of a node exchanged, and nodes: all go back. Another: the same packs."""
    loads, hosts, groups = problem
    placement, size = place_experts(loads, hosts, groups), hosts.ranks // hosts.nodes
    nodes = [random.sample(placement[i : i + size], size) for i in range(0, hosts.ranks, size)]
    shuffled = [rank for node in random.sample(nodes, len(nodes)) for rank in node]
    back = kept_in_place(shuffled, placement, hosts.nodes)
    assert sorted(back) == sorted(placement)
    if not hosts.redundant:
        assert back == placement
    other = kept_in_place(placement, place_experts(loads[::-1], hosts, groups), hosts.nodes)
    ends = range(0, hosts.ranks, size)
    assert sorted(sorted(other[i : i + size]) for i in ends) == sorted(
        sorted(placement[i : i + size]) for i in ends
    )
