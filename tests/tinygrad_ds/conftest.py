"""What several test files here share."""

import pytest

import tinygrad_ds as tg
from tinygrad_ds.primitive import Primitive


@pytest.fixture(scope="module", params=["reference", "fused"])
def kernels(request):
    """The tests that ask for it run with the reference kernels, then with the fused ones."""
    with tg.using(kernels=request.param):
        yield request.param


@pytest.fixture
def register():
    """Make a primitive from a forward and a backward; it leaves the registry when the test is over."""
    before = set(tg.primitives)

    def make(forward, backward, **options):
        made = Primitive(forward, **options)
        made.backward(backward)
        return made

    yield make
    for name in set(tg.primitives) - before:
        del tg.primitives[name]
