import subprocess
import sys

import pytest

from tests.train.parallel.launching import ROOT
from train.parallel.launch import MARKS, under_mpiexec


@pytest.mark.parametrize("mark", [None, *MARKS])
def test_ranks_are_known_by_what_their_launcher_says(monkeypatch, mark):
    for each in MARKS:
        monkeypatch.delenv(each, raising=False)
    if mark:
        monkeypatch.setenv(mark, "2")
    assert under_mpiexec() == bool(mark)


def test_one_process_does_not_even_import_mpi():
    """Nor does it need to be installed."""
    code = "import sys, train.__main__, train.parallel.crew; sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
