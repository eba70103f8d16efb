"""The rules that hold for every file: where code may stand, what a folder's face may hold, what is pinned."""

import ast
import configparser
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tinygrad_ds.command import COMMANDS

ROOT = Path(__file__).parent.parent
BESIDE = {"tests", "examples", "benchmarks"}  # run from a clone, never installed
PACKAGES = sorted({path.parent.name for path in ROOT.glob("*/__init__.py")} - BESIDE)
PYTHON_FILES = sorted(path for name in [*PACKAGES, *BESIDE] for path in (ROOT / name).rglob("*.py"))
FACES = sorted(face for package in PACKAGES for face in ROOT.glob(f"{package}/**/__init__.py"))
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def named(path: Path) -> str:
    """The path as seen from the root of the project."""
    return str(path.relative_to(ROOT))


def words(section: str, option: str) -> list[str]:
    """A list in setup.cfg."""
    return SETUP[section][option].replace(",", " ").split()


def run(command: str) -> subprocess.CompletedProcess:
    """Run a program of this environment."""
    program, *arguments = command.split()
    path = Path(sys.executable).parent / program
    return subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "lint-imports"])
def test_linters_have_nothing_to_say(command):
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_hold_one_idea_each():
    lengths = {named(path): len(path.read_text().splitlines()) for path in PYTHON_FILES}
    del lengths["tests/golden/make.py"]  # frozen with the numbers that it made
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_every_package_is_named_where_packages_are_named():
    assert set(PACKAGES) <= set(words("options.packages.find", "include"))
    assert sorted(words("importlinter", "root_packages")) == PACKAGES
    assert sorted(words("importlinter:contract:outside", "source_modules")) == PACKAGES
    assert sorted(words("mypy", "packages")) == PACKAGES
    assert sorted(COMMANDS) == [name for name in PACKAGES if (ROOT / name / "__main__.py").exists()]


def test_nothing_else_is_installed():
    """`train*` would install a stranger's `training` too: only `train` and `train.*` will do."""
    patterns = words("options.packages.find", "include")
    names = {pattern.removesuffix(".*") for pattern in patterns}
    assert sorted(patterns) == sorted([*names, *(f"{name}.*" for name in names)])
    assert all(name.isidentifier() for name in names) and not names & BESIDE


def test_command_runs_by_name_and_refuses_the_rest():
    help_text = run("tinygrad-ds --help")
    assert help_text.returncode == 0 and all(name in help_text.stdout for name in COMMANDS)
    refused = run("tinygrad-ds trian")
    assert refused.returncode == 2 and "'trian'" in refused.stderr and refused.stdout == ""
    for name in COMMANDS:
        assert run(f"tinygrad-ds {name} --help").returncode == 0


def test_every_folder_of_code_has_a_face():
    bare = {named(path.parent) for path in PYTHON_FILES if not (path.parent / "__init__.py").exists()}
    assert bare - {"examples"} == set()


def may_stand_in_a_face(node: ast.stmt) -> bool:
    """Imports, the docstring, `__all__`, and calls of what was imported."""
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["__all__"]
    calls_or_tells = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Call)
    return calls_or_tells or isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("face", FACES, ids=named)
def test_a_face_hands_names_on_and_defines_nothing(face):
    others = [node for node in ast.parse(face.read_text()).body if not may_stand_in_a_face(node)]
    assert [ast.unparse(node) for node in others] == []


@pytest.mark.parametrize("face", FACES, ids=named)
def test_no_module_is_named_like_something_that_its_package_exports(face):
    """`from layers import model` must mean one thing, whatever was imported before."""
    package = importlib.import_module(".".join(face.parent.relative_to(ROOT).parts))
    modules = [path.stem for path in face.parent.iterdir()]
    taken = {name for name in modules if not isinstance(vars(package).get(name, package), ModuleType)}
    assert taken == set()


def test_tests_mirror_the_folders_and_hide_none_of_them():
    """Without its `__init__.py`, `tests/layers` would be imported in place of `layers`."""
    for folder in {path.parent for path in (ROOT / "tests").rglob("test_*.py")}:
        assert (folder / "__init__.py").read_text() == ""
        mirrored = ROOT / folder.relative_to(ROOT / "tests")
        known = mirrored.is_dir() or {"golden", "oracle", "cuda", "cupy_on_cpu"} & {*folder.parts}
        assert known, f"{named(folder)} mirrors no folder"


def package_of(requirement: str) -> str:
    """The name in `Some_Name[extra] >=1.0; python_version < "4"`, spelt as the index spells it: some-name."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_everything_that_is_needed_is_pinned_and_installed_as_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {package_of(line): line.partition("==")[2] for line in lines if not line.startswith("#")}
    extras = SETUP["options.extras_require"]
    wanted = f"{SETUP['options']['install_requires']}\n{extras['dev']}\n{extras['mpi']}".split("\n")
    names, installed = [package_of(line) for line in wanted if line], {}
    while names:
        name = names.pop()
        try:
            metadata = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # what other systems or Python versions need
            continue
        if name not in installed:
            installed[name] = metadata.version
            names += [package_of(line) for line in metadata.requires or [] if "extra ==" not in line]
    assert {name: pins.get(name) for name in installed} == installed
