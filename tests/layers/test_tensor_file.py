import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.tensor_file import DTYPES, CheckpointError, Planned, read_header, write_file


def written(path, arrays):
    write_file(path, [Planned(name, a.dtype, a.shape, lambda a=a: a) for name, a in arrays.items()])
    return path


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "a.safetensors", {"x": np.arange(6.0).reshape(2, 3), "y": np.ones(4, np.int32)})


def test_the_formats_own_library_reads_what_is_written(tmp_path):
    plain = [kind for code, kind in DTYPES.items() if code[:2] not in ("BF", "F8")]
    arrays = {kind.name: np.arange(12).reshape(3, 4).astype(kind) for kind in plain}
    arrays |= {"nothing": np.zeros((0, 3)), "number": np.array(7.0)}
    theirs = safetensors.numpy.load_file(written(tmp_path / "a.safetensors", arrays))
    assert theirs.keys() == arrays.keys()
    for name, array in arrays.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)


def test_what_the_formats_own_library_writes_is_read(tmp_path):
    arrays = {"a": np.arange(5, dtype=np.float32), "b.c": np.ones((2, 0, 3)), "d": np.array([[True]])}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "np"})
    stored = read_header(tmp_path / "a.safetensors")
    assert stored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name].map(), array)


@pytest.mark.parametrize("code", DTYPES)
def test_every_format_comes_back_bit_by_bit(tmp_path, code):
    size = DTYPES[code].itemsize
    values = (np.arange(256) % (2 if code == "BOOL" else 256)).astype(np.uint8)
    array = values.view(DTYPES[code]).reshape(2, 128 // size)
    again = read_header(written(tmp_path / "a", {"x": array}))["x"].map()
    assert again.dtype == array.dtype and again.tobytes() == array.tobytes()


def test_tensors_are_mapped_and_not_read(file):
    x = read_header(file)["x"].map()
    assert isinstance(x, np.memmap) and not x.flags.writeable


def test_every_truncation_is_noticed_in_one_sentence(file):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as error:
            read_header(file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=100)
@given(st.data())
def test_damage_to_a_header_is_refused_or_harmless(tmp_path_factory, data):
    """No changed byte leads to an error of another kind, or to a tensor outside of the file."""
    file = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    whole = bytearray(written(file, {"x": np.arange(6.0), "y": np.ones(4, np.int32)}).read_bytes())
    end = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    try:
        stored = read_header(file)
    except CheckpointError:
        return
    for each in stored.values():
        assert each.map().nbytes + each.offset <= len(whole)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},  # fewer bytes than the shape says
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4 * 10**30]},
        [],
        None,
    ],
)
def test_entries_that_cannot_be(tmp_path, entry):
    file = tmp_path / "a.safetensors"
    header = json.dumps({"x": entry}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="which cannot be|its tensors end at byte"):
        read_header(file)


@pytest.mark.parametrize(
    "spans, words",
    [([(0, 4), (0, 4)], "overlap or leave gaps"), ([(0, 4), (8, 12)], "overlap or leave gaps")],
)
def test_tensors_that_share_or_skip_bytes(tmp_path, spans, words):
    entries = {str(i): {"dtype": "F32", "shape": [1], "data_offsets": s} for i, s in enumerate(spans)}
    header = json.dumps(entries).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(max(end for _, end in spans)))
    with pytest.raises(CheckpointError, match=words):
        read_header(file)


def test_files_of_another_kind(tmp_path, file):
    for name, content in {
        "empty": b"",
        "text": b"once upon a time there was no tensor at all",
        "list": (2).to_bytes(8, "little") + b"[]",
        "pickle": b"\x80\x04\x95" + bytes(100),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="is no safetensors file"):
            read_header(tmp_path / name)
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="something foreign follows"):
        read_header(file)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_header(tmp_path / "missing")
