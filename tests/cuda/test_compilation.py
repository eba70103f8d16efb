"""NVIDIA's compiler takes every kernel, for every generation of GPUs that is in use."""

from pathlib import Path

import pytest
from cupy_backends.cuda.libs import nvrtc

from tinygrad_ds.kernels import cuda
from tinygrad_ds.kernels.cuda.common import OPTIONS, source

pytestmark = pytest.mark.cuda
FILES = sorted(path.name for path in Path(cuda.__file__).parent.glob("*.cu"))
# Turing, Ampere (A100, then RTX 30), Ada, Hopper, Blackwell (RTX 50)
ARCHITECTURES = (75, 80, 86, 89, 90, 120)
CONSTANTS = {
    "attention.cu": (("KEY_COLUMNS", 6), ("VALUE_COLUMNS", 4)),
    "decoding.cu": (("LATENT_COLUMNS", 16),),
}


def compiled(file, dtype, architecture):
    program = nvrtc.createProgram(source(file, dtype, CONSTANTS.get(file, ())), file, (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture=sm_{architecture}"))
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_compiles(file, architecture):
    dtype = "float64" if architecture == ARCHITECTURES[-1] else "float32"
    binary = compiled(file, dtype, architecture)
    assert binary.startswith(b"\x7fELF") and b".nv.constant0." in binary
