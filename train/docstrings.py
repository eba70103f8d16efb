"""The default text: English documentation that every installation carries.

The language reference of `pydoc_data.topics`, then the docstrings of the standard library, NumPy, numba,
matplotlib and hypothesis. They are read from the `.py` files with `ast`: nothing is imported, so no module
runs code, opens windows or starts threads, and a file costs milliseconds.
"""

import ast
import gc
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("numpy", "numba", "matplotlib", "hypothesis")
SHORTEST = 100  # bytes: below it a docstring is a label rather than prose
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
HOLDS_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)


def docstring_sources() -> list[str]:
    """What the default text is made from here, with versions: ["CPython 3.11.7", "numpy 2.4.6", ...]."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        python,
        *(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if package_folder(name)),
    ]


def package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of one file in source order, indentation removed; none if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text
        stack.extend(
            reversed([child for child in ast.iter_child_nodes(node) if isinstance(child, HOLDS_STATEMENTS)])
        )


def folder_docstrings(folder: Path) -> Iterator[str]:
    """The docstrings of all modules under `folder`, in the order of their sorted paths, tests left out."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(files):
            if name.endswith(".py"):
                yield from docstrings(Path(place, name).read_bytes())


def topics() -> list[str]:
    """The language reference, as `help("topics")` shows it: 79 pages in Python 3.11."""
    try:
        from pydoc_data.topics import topics as pages  # plain data, but some distributions leave it out
    except ImportError:
        return []
    return [pages[name] for name in sorted(pages)]


def collect_docstrings(say: Callable[[str], None]) -> list[str]:
    """All of the default text, in a fixed order, duplicates not yet dropped. Takes 8 to 9 s on one core.

    `say` is told what is being read.
    """
    # Parsing makes millions of short-lived objects without cycles, through which the collector walks in vain:
    # a quarter of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # others' doubtful escape sequences
            say("reading the documentation of the standard library")
            found = topics() + list(folder_docstrings(Path(sysconfig.get_path("stdlib"))))
            for name in PACKAGES:
                if folder := package_folder(name):
                    say(f"reading the documentation of {name}")
                    found += folder_docstrings(folder)
    finally:
        if collecting:
            gc.enable()
    return [text for text in found if is_prose(text)]


def is_prose(text: str) -> bool:
    """Long enough, and free of lone surrogates, which no UTF-8 text can hold."""
    try:
        return len(text.encode()) >= SHORTEST
    except UnicodeEncodeError:
        return False
