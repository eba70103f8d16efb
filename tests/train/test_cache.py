import os

import pytest

from train.cache import cache_folder, cached, write_aside


def counting(results):
    """A `make` that returns one result after the other."""
    return lambda: results.pop(0)


def test_made_once_and_read_back():
    results = [b"first", b"second"]
    assert [cached("test", {"once": 1}, counting(results)) for _ in range(3)] == [b"first"] * 3


def test_another_key_is_another_result():
    results = [b"first", b"second"]
    assert cached("test", {"other": 1}, counting(results)) == b"first"
    assert cached("test", {"other": 2}, counting(results)) == b"second"


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b[:5]]
)
def test_what_is_damaged_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("TINYGRAD_DS_CACHE", str(tmp_path))
    results = [b"first", b"second"]
    cached("test", {}, counting(results))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cached("test", {}, counting(results)) == b"second"
    assert cached("test", {}, counting(results)) == b"second"


def test_an_empty_result_counts_as_a_result():
    results = [b"", b"second"]
    assert [cached("test", {"empty": 1}, counting(results)) for _ in range(2)] == [b"", b""]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINYGRAD_DS_CACHE", str(tmp_path / "file" / "below"))
    assert cached("test", {}, lambda: b"made") == b"made"


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("TINYGRAD_DS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tinygrad_ds"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tinygrad_ds"


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result"
    write_aside(path, b"old")

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_aside(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_written_file_may_be_read_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    write_aside(tmp_path / "result", b"")
    assert (tmp_path / "result").stat().st_mode == (tmp_path / "other").stat().st_mode
