"""Ranks with arrays of the device: through pinned memory, and through an MPI that takes them as they are."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import tinygrad_ds as tg
from tests.train.parallel.jobs import cases
from tests.train.parallel.launching import ALONE, MPIEXEC, ROOT
from tinygrad_ds.device import to_host
from train.team import Team
from train.trainer import State, train

pytestmark = [pytest.mark.cuda, pytest.mark.mpi]


def on_two_ranks(folder, aware):
    """What both ranks found."""
    path = folder / "out.pickle"
    tool = ["-m", "tests.cupy_on_cpu"] if "CUPY_ON_CPU" in os.environ else []
    environment = os.environ | ALONE | {"TINYGRAD_DS_DEVICE": "cuda", "TINYGRAD_DS_MPI_CUDA": aware}
    done = subprocess.run(
        [MPIEXEC, "-n", "2", sys.executable, *tool, "-m", "tests.cuda.ranks", path],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads(path.read_bytes())


def in_one_process(name):
    case, team = cases(2)[name], Team()
    with tg.using(kernels="reference"):
        team.take(case.model, case.optimizer, case.fill)
        train(
            team.model,
            team.optimizer,
            case.next_work(team.model),
            case.loss,
            State(total=2),
            learning_rate=lambda state: 0.003,
            clip=1e9,
        )
    return {part.name: to_host(part.data) for part in team.model.published()}


@pytest.mark.parametrize("aware", ["0", "1"] if "CUPY_ON_CPU" in os.environ else ["0"])
def test_ranks_on_the_device_compute_what_one_process_does_on_the_host(aware, tmp_path):
    """With "1" MPI is given the arrays themselves: any MPI can read the memory of the emulated device."""
    first, second = on_two_ranks(tmp_path, aware)
    for rank, found in enumerate((first, second)):
        messages, numbers = found["messages"], [np.arange(6.0) + 10 * r for r in (0, 1)]
        assert messages["where"] == {"cuda"}
        np.testing.assert_array_equal(messages["sent"], numbers[1 - rank].reshape(2, 3))
        np.testing.assert_array_equal(messages["sum"], sum(numbers).reshape(2, 3))
        np.testing.assert_array_equal(messages["piece"], sum(numbers)[[slice(0, 2), slice(2, 6)][rank]])
        np.testing.assert_array_equal(messages["whole"], [0, 1, 10, 11, 12])
        sent = [np.arange(8.0).reshape(4, 2) + 10 * r for r in (0, 1)]
        cut = slice(0, 1) if rank == 0 else slice(1, 4)
        np.testing.assert_array_equal(messages["rows"], np.concatenate([rows[cut] for rows in sent]))
        assert messages["nothing"].shape == (0, 2)
    for name in first.keys() - {"messages"}:
        expected = in_one_process(name)
        for tensor, value in expected.items():
            scale = max(np.abs(value).max(), 1.0)
            np.testing.assert_allclose(first[name][tensor], value, rtol=0, atol=1e-9 * scale, err_msg=tensor)
