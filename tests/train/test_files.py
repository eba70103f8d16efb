import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data import load_corpus
from train.errors import UserError
from train.files import HEAD_BYTES, cut, read_file, read_files

PROSE = "".join(f"Paragraph {i} has a number.\nIt has {i % 5} others.\n\n" for i in range(2000))


def read(*paths):
    return read_files(paths, lambda line: None)


@given(st.text(alphabet="ab \n", max_size=400), st.integers(1, 50))
def test_pieces_add_up_and_have_the_size_asked_for(text, limit):
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(limit // 2 < len(piece) <= limit for piece in pieces[:-1]) and len(pieces[-1]) <= limit


@pytest.mark.parametrize("mark", ["\n\n", "\n", " "])
def test_pieces_end_at_the_best_place_there_is(mark):
    pieces = list(cut(("a" * 7 + mark) * 100, 50))
    assert len(pieces) > 10 and all(piece.endswith(mark) for piece in pieces)


def test_one_large_file_is_cut_into_documents_and_split(tmp_path):
    (tmp_path / "book.txt").write_text(PROSE)
    corpus = load_corpus([tmp_path / "book.txt"])
    assert corpus.train_bytes + corpus.held_out_bytes == len(PROSE)
    assert len(corpus.held_out) > 1 and all(text.endswith("\n\n") for text in corpus.train)


def test_a_file_among_many_is_a_document(tmp_path):
    texts = [f"File {i}.\n\n" + "A sentence of its own.\n\n" * 30 for i in range(100)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:03}.md").write_text(text)
    assert read(tmp_path) == texts
    (tmp_path / "large.rst").write_text(PROSE)
    assert read(tmp_path)[:100] == texts and "".join(read(tmp_path)[100:]) == PROSE


def test_folders_are_read_recursively_in_order_whatever_the_names(tmp_path):
    for name in ("b/two.py", "a/one.rst", "c/three", "d.txt", ".git/config", "__pycache__/x.py", "e/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    said = []
    found = read_files([tmp_path], said.append)
    assert "".join(found) == "d.txta/one.rstb/two.pyc/three"
    assert said == [f"{tmp_path}: 4 text files, 3 others passed over"]


def test_packed_files_are_unpacked(tmp_path):
    with gzip.open(tmp_path / "text.txt.gz", "wt") as file:
        file.write(PROSE)
    assert read_file(tmp_path / "text.txt.gz") == PROSE
    assert "".join(read(tmp_path)) == PROSE


def test_marks_of_other_systems_are_dropped(tmp_path):
    (tmp_path / "dos.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert read_file(tmp_path / "dos.txt") == "one\ntwo\nthree\n"


@given(text=st.text(max_size=50), far=st.sampled_from([0, HEAD_BYTES - 1, HEAD_BYTES + 10]))
def test_the_first_byte_that_is_not_utf8_is_named(tmp_path_factory, text, far):
    before = (" " * far + text.replace("\0", "")).encode()
    path = tmp_path_factory.mktemp("text") / "latin.txt"
    path.write_bytes(before + b"\xe9 and more")
    with pytest.raises(UserError) as error:
        read_file(path)
    assert f"{path} is not UTF-8: byte 0xe9 at offset {len(before)};" in str(error.value)
    assert "iconv" in str(error.value)


def test_named_paths_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"text\0")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(PROSE.encode())[:-20])
    (tmp_path / "bad.gz").write_bytes(gzip.compress(PROSE.encode()).replace(b"\0", b"\1"))
    (tmp_path / "no.gz").write_text("not packed")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "blob").write_bytes(b"\0")
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in {
        "missing": "does not exist",
        "binary": "is binary, not text: byte 0x00 at offset 4",
        "cut.gz": "is damaged or no gzip file",
        "bad.gz": "is damaged or no gzip file",
        "no.gz": "is damaged or no gzip file",
        "folder": "holds no UTF-8 text file",
        "pipe": "is neither a file nor a folder",
    }.items():
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert f"{tmp_path / name} {sentence}" in str(error.value)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "secret.txt"
    path.write_text(PROSE)

    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refused)
    with pytest.raises(UserError, match=r"secret.txt cannot be read: Permission denied"):
        read(path)
