"""What several test files here share."""

import pytest

import tinygrad_ds as tg


@pytest.fixture(scope="module", params=["reference", "fused"])
def kernels(request):
    """The tests that ask for it run with the reference kernels, then with the fused ones."""
    with tg.using(kernels=request.param):
        yield request.param
