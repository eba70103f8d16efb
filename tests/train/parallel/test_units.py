import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.tiny import tiny_model, with_gradient
from train.muon import Muon, is_hidden_matrix
from train.optimizer import AdamW
from train.parallel.units import Shard, Unit, of_shard, places, rows_of, shares, to_whole, whole_units

OPTIMIZERS = {"adamw": lambda model: AdamW(model, lr=0.01), "muon": lambda model: Muon(model, lr=0.01)}


@given(st.integers(1, 7))
def test_shares_cut_everything_once_and_evenly(holders):
    units = whole_units(tiny_model())
    given_out = shares(units, holders)
    rows = {unit.part.name: np.zeros(unit.stop, dtype=int) for unit in units}
    for unit in (unit for share in given_out for unit in share):
        rows[unit.part.name][unit.start : unit.stop] += 1
        if is_hidden_matrix(unit.part.name, unit.part.data.shape):
            assert unit.stop - unit.start == len(unit.part.data), "Muon steps matrices as wholes"
    assert all((times == 1).all() for times in rows.values())
    sizes = [sum(unit.data.size for unit in share) for share in given_out]
    largest = max(unit.data.size for unit in units)
    assert max(sizes) - min(sizes) <= largest


def test_units_share_the_memory_of_their_leaves():
    """Data and gradient, of rows of experts in a stack as of rows of a matrix."""
    model = with_gradient(tiny_model())
    for unit in whole_units(model):
        half = Unit(unit.part, 0, -(-unit.stop // 2))
        half.data[...] = 7.0
        half.grad[...] = 5.0
        assert (half.tensor.data == 7.0).all() and (half.tensor.grad == 5.0).all()
        assert (unit.part.tensor().data[: half.stop] == 7.0).all()
        assert (unit.part.tensor().grad[: half.stop] == 5.0).all()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (None, slice(2, 4)),
        (slice(10, 20), slice(12, 14)),
        (slice(None, 20), slice(2, 4)),
        (3, (3, slice(2, 4))),
        ((3, slice(10, 20)), (3, slice(12, 14))),
    ],
)
def test_rows_of_a_piece_of_a_leaf(index, expected):
    assert rows_of(index, 2, 4) == expected


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("holders", [1, 3])
def test_shards_step_like_the_whole_and_their_states_make_one(kind, holders):
    """Each shard steps its own units of the same network; nothing else knows that there are several."""
    whole, cut = with_gradient(tiny_model()), with_gradient(tiny_model())
    one = OPTIMIZERS[kind](whole)
    several = [OPTIMIZERS[kind](Shard(cut, share)) for share in shares(whole_units(cut), holders)]
    where = places(tiny_model())
    for _ in range(2):
        for optimizer in (one, *several):
            optimizer.step()
    for (name, a), (_, b) in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        np.testing.assert_allclose(b.data, a.data, rtol=1e-12, atol=1e-14, err_msg=name)
    state, expected = to_whole([each.state_dict() for each in several], where), one.state_dict()
    assert state.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(state[key], values, rtol=1e-12, atol=1e-14, err_msg=key)
    for optimizer in several:
        back = of_shard(optimizer.state_dict(), state, where)
        assert all((back[key] == values).all() for key, values in optimizer.state_dict().items())
        optimizer.load_state_dict(back)
