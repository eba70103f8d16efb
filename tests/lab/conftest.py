"""What the lab remembers goes into a folder of each test's own."""

import pytest


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYGRAD_DS_LAB", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
