import fractions
import inspect
import json
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import docstrings
from train.data import FEWEST_BYTES, count_bytes, load_corpus, split_corpus
from train.errors import UserError

# 60 documents of 400 bytes and more, all different.
FILLER = [f"document {i}: " + f"{i * i} is a square. " * (20 + i % 7) for i in range(60)]
DOCUMENTS = st.lists(st.text(min_size=1, max_size=60), max_size=30).map(lambda more: FILLER + more)


@given(DOCUMENTS)
def test_the_parts_are_disjoint_and_make_up_the_text(documents):
    corpus = split_corpus(documents)
    unique = list(dict.fromkeys(text for text in documents if text.strip()))
    assert [text for text in unique if text in corpus.train] == list(corpus.train)
    assert [text for text in unique if text in corpus.held_out] == list(corpus.held_out)
    assert len(corpus.train) + len(corpus.held_out) == len(unique)
    assert corpus.train_bytes + corpus.held_out_bytes == count_bytes(unique)


@given(DOCUMENTS)
def test_held_out_is_8_percent_but_for_a_part_of_one_document(documents):
    corpus = split_corpus(documents)
    wanted = 0.08 * (corpus.train_bytes + corpus.held_out_bytes)
    assert wanted <= corpus.held_out_bytes < wanted + max(len(text.encode()) for text in documents)


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_the_split_depends_on_neither_order_nor_duplicates(documents, random):
    shuffled = documents + random.choices(documents, k=10)
    random.shuffle(shuffled)
    one, other = split_corpus(documents), split_corpus(shuffled)
    assert set(one.held_out) == set(other.held_out) and set(one.train) == set(other.train)


@given(DOCUMENTS)
def test_added_documents_change_the_side_of_the_others_in_one_direction_only(documents):
    before, after = split_corpus(FILLER), split_corpus(documents)
    kept = set(after.held_out) & set(FILLER)
    assert kept <= set(before.held_out) or kept >= set(before.held_out)


def test_the_sha256_tells_documents_and_split_apart():
    corpus = split_corpus(FILLER)
    assert corpus.sha256 == split_corpus(FILLER + FILLER).sha256
    assert corpus.sha256 != split_corpus([*FILLER[:-1], FILLER[-1] + "x"]).sha256
    moved = type(corpus)(corpus.train[1:], (*corpus.held_out, corpus.train[0]), ())
    assert corpus.sha256 != moved.sha256


@pytest.mark.parametrize(
    "documents", [[], ["short"], ["a" * FEWEST_BYTES], ["a" * 1000] * 100, [" \n"] * 100]
)
def test_too_little_text_is_refused_with_what_it_holds(documents):
    with pytest.raises(UserError, match=r"holds [\d,]+ bytes in \d documents .* at least 20,000 bytes"):
        split_corpus(documents)


@pytest.mark.parametrize("short", [f"document {i}" for i in range(8)])
def test_even_two_documents_are_split_into_two_parts(short):
    corpus = split_corpus(["a" * FEWEST_BYTES, short])
    assert len(corpus.train) == len(corpus.held_out) == 1


@pytest.mark.parametrize("module", [fractions, textwrap, json])
def test_docstrings_are_those_that_python_shows(module):
    found = set(docstrings.docstrings(Path(module.__file__).read_bytes()))
    shown = [module, *vars(module).values()]
    shown += [member for value in shown[1:] if inspect.isclass(value) for member in vars(value).values()]
    own = {
        inspect.cleandoc(value.__doc__).strip()
        for value in shown
        if (inspect.isfunction(value) and value.__module__ == module.__name__ and value.__doc__)
        or value is module
    }
    assert len(own) > 3 and own <= {text.strip() for text in found}


def test_docstrings_come_in_source_order_from_every_kind_of_body():
    source = '''
"""one"""
class A:
    """two"""
    x = "no docstring"
    async def f():
        """three"""
        "no docstring"
try:
    if True:
        def g():
            """
            four
              indented
            """
except ImportError:
    def h(): "five"
match 1:
    case 1:
        def k(): "six"
'''
    found = list(docstrings.docstrings(source.encode()))
    assert found == ["one", "two", "three", "four\n  indented", "five", "six"]


@pytest.mark.parametrize("source", [b"def f(:", b"x = '\0'", b"\xff", b"(" * 1000 + b")" * 1000, b""])
def test_a_file_that_does_not_parse_has_no_docstrings(source):
    assert list(docstrings.docstrings(source)) == []


@pytest.fixture
def small_python(tmp_path, monkeypatch):
    """An interpreter whose library is one small folder and whose only package is missing."""
    library = tmp_path / "library"
    for name in ("a.py", "b/c.py", "b/tests/test_c.py", "site-packages/d.py"):
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{name} {"is worth reading. " * 10}"""\nraise SystemExit("was run")\n')
    (library / "short.py").write_text('"""Too short."""')
    (library / "surrogate.py").write_text(r'"""' + "lone surrogate " * 10 + r'\ud800"""')
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(library))
    monkeypatch.setattr(docstrings, "PACKAGES", ("no_such_package",))
    return library


def test_default_text_is_read_without_running_it(small_python):
    said = []
    found = docstrings.collect_docstrings(said.append)
    assert [text.split()[0] for text in found[-2:]] == ["a.py", "b/c.py"]
    assert set(found[:-2]) == {page for page in docstrings.topics() if docstrings.is_prose(page)}
    assert said == ["reading the documentation of the standard library"]


def test_default_text_is_collected_once_for_a_python(small_python, monkeypatch):
    first = load_corpus()
    monkeypatch.setattr(docstrings, "collect_docstrings", lambda say: pytest.fail("collected again"))
    again = load_corpus()
    assert again == first and again.sha256 == first.sha256
    assert first.sources == (f"CPython {sys.version.split()[0]}",)


@pytest.mark.slow
def test_default_text_is_about_5_megabytes_of_english():
    corpus = load_corpus()
    total = corpus.train_bytes + corpus.held_out_bytes
    words = " ".join(corpus.held_out).lower().split()
    assert 3e6 < total < 9e6 and len(corpus.sources) == 5
    assert 0.02 < words.count("the") / len(words) < 0.08  # about one word in twenty
    assert any(text.startswith('The "try" statement') for text in corpus.train + corpus.held_out)
