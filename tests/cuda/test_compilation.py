"""NVIDIA's compiler takes every kernel, for every generation of GPUs that is in use."""

import pytest
from cupy_backends.cuda.libs import nvrtc

from tinygrad_ds.kernels.cuda.common import FOLDER, OPTIONS, source

pytestmark = pytest.mark.cuda
FILES = sorted(path.name for path in FOLDER.glob("*.cu"))
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


@pytest.mark.parametrize("architecture", (ARCHITECTURES[0], ARCHITECTURES[-1]))
@pytest.mark.parametrize("file", [file for file in FILES if "stored" in (FOLDER / file).read_text("utf-8")])
def test_compiles_for_bfloat16(file, architecture):
    assert compiled(file, "bfloat16", architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_compiles(file, architecture):
    dtype = "float64" if architecture == ARCHITECTURES[-1] else "float32"
    binary = compiled(file, dtype, architecture)
    assert binary.startswith(b"\x7fELF") and b".nv.constant0." in binary
