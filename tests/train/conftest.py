"""A cache of its own for the tests, so that none depends on what an earlier run left behind."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGRAD_DS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
