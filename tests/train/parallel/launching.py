"""Starting ranks from a test."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MPIEXEC = Path(sys.executable).parent / "mpiexec"  # that of the wheel, beside this Python
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def start(ranks: int, *arguments: object, **environment: str) -> subprocess.Popen:
    """Python with these arguments on so many ranks, one thread each, reference kernels."""
    mpiexec = MPIEXEC if MPIEXEC.exists() else "mpiexec"
    return subprocess.Popen(
        [str(mpiexec), "-n", str(ranks), sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ALONE | {"TINYGRAD_DS_KERNELS": "reference"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, seconds: float = 120.0) -> tuple[int, str, str]:
    """Exit code, output and errors; what has not ended by then is ended, and the test fails."""
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, errors
