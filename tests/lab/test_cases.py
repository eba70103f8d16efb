"""Every primitive has cases of each kind, and they are what they say."""

import numpy as np
import pytest

import tinygrad_ds as tg
from lab.cases import MAKERS, STANDARD, small, standard, worked

OURS = sorted(name for name, p in tg.primitives.items() if p.forward.__module__.startswith("tinygrad_ds."))


def test_every_primitive_has_a_maker():
    assert set(OURS) - set(MAKERS) == set()


@pytest.mark.parametrize("name", OURS)
def test_gradients_are_right_on_worked_and_small_cases(name):
    for arrays, options in [worked(MAKERS[name]), *small(MAKERS[name], 10, seed=1)]:
        report = tg.gradcheck(tg.primitives[name], *arrays, **options)
        assert report.passed, (arrays, options, report)


@pytest.mark.parametrize("name", OURS)
def test_a_case_is_the_same_each_time_and_small_ones_come_first(name):
    first, again = small(MAKERS[name], 12), small(MAKERS[name], 12)
    assert all(np.array_equal(a, b) for x, y in zip(first, again) for a, b in zip(x.arrays, y.arrays))
    sizes = [sum(array.size for array in case.arrays) for case in first]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("name", OURS)
def test_standard_cases_are_float32_large_and_run(name):
    arrays, options = standard(MAKERS[name])
    assert all(array.dtype != np.float64 for array in arrays)
    assert max(array.size for array in arrays) >= min(STANDARD["d"], STANDARD["time"] * STANDARD["experts"])
    y, _ = tg.primitives[name].forward(*arrays, **options)
    assert all(np.isfinite(part).all() for part in (y if isinstance(y, tuple) else (y,)))
