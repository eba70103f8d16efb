import numpy as np
import pytest

from train.config import Parallel
from train.errors import UserError
from train.parallel.placement import Hosts
from train.parallel.placer import Placer

BUSY = np.array([9.0, 9, 1, 1])


def test_experts_change_places_only_where_that_is_better():
    said: list[str] = []
    placer = Placer(Hosts(2), 4, 1, said.append)
    placer.begin(["a", "b"], {})
    assert not said and placer.placements == {"a": [[0, 2], [1, 3]], "b": [[0, 2], [1, 3]]}
    placer.count({"a": BUSY, "b": BUSY[[0, 2, 1, 3]]})
    placer.count({"a": BUSY, "b": BUSY[[0, 2, 1, 3]]})
    assert placer.busiest({"a": BUSY}) == {"a": 1.0}
    assert placer.again() == {"b": [[0, 1], [2, 3]]}
    assert placer.placements == {"a": [[0, 2], [1, 3]], "b": [[0, 1], [2, 3]]}
    assert said == [
        "experts of 1 of 2 layers change places: their busiest ranks got 1.80 times the mean of late and "
        "would have got 1.00"
    ]
    assert placer.again() == {}, "what was seen before is forgotten"


def test_known_loads_are_used_and_told_from_the_beginning():
    said: list[str] = []
    placer = Placer(Hosts(2), 4, 1, said.append)
    placer.begin(["a"], {"a": BUSY})
    assert placer.placements == {"a": [[0, 2], [1, 3]]}
    assert said[0].startswith("a: the busiest rank gets 1.80 times the mean")


def test_experts_of_one_rank_cannot_be_placed():
    with pytest.raises(UserError, match="place_every is 5 but expert_ranks 1"):
        Parallel(place_every=5)
    with pytest.raises(UserError, match="place_every is -1 but must be at least 0"):
        Parallel(place_every=-1, expert_ranks=2)
