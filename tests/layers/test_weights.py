import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from layers import DeepSeekConfig, DeepSeekModel, load_pretrained, save_pretrained
from layers.config import ConfigError
from layers.tensor_file import CheckpointError, Planned, read_header, write_file
from tests.layers.cases import CASES, GOLDEN, SOFTMAX, YARN, model_of, some_ids, tiny

FULL = {"num_nextn_predict_layers": 2, "rope_scaling": YARN, "attention_bias": True}
NAME = "model.layers.1.mlp.experts.2.up_proj.weight"


def same(ours, theirs, tolerance=0.0):
    theirs = {part.name: part.data for part in theirs.published()}
    assert [part.name for part in ours.published()] == list(theirs)
    for part in ours.published():
        np.testing.assert_allclose(part.data, theirs[part.name], rtol=tolerance, atol=tolerance / 100)


@pytest.fixture
def folder(tmp_path):
    save_pretrained(model_of(dtype="float32", **FULL), tmp_path / "model")
    return tmp_path / "model"


def change(folder, edit):
    """Rewrite a checkpoint of one file after `edit(arrays)`."""
    stored = read_header(folder / "model.safetensors")
    arrays = {name: np.array(each.map()) for name, each in stored.items()}
    edit(arrays)
    write_file(
        folder / "model.safetensors", [Planned(n, a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shard", [10**9, 3000, 1])
@pytest.mark.parametrize("changes", [FULL, SOFTMAX, {"tie_word_embeddings": True}, {"attention_kind": "mqa"}])
def test_round_trip_is_exact(tmp_path, dtype, shard, changes):
    model = model_of(dtype=dtype, **changes)
    save_pretrained(model, tmp_path, max_shard_size=shard)
    again = load_pretrained(tmp_path, dtype=dtype)
    same(again, model)
    assert again.config.replace(torch_dtype=None) == model.config
    ids = some_ids(2, 5)
    np.testing.assert_array_equal(again(ids).data, model(ids).data)


def test_shards_are_cut_by_size_and_listed_in_the_index(tmp_path):
    model = model_of(dtype="float32")
    save_pretrained(model, tmp_path, max_shard_size=3000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 3 and files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = {part.name: part for part in model.published()}
    assert index["weight_map"].keys() == names.keys()
    for file in files:
        arrays = safetensors.numpy.load_file(tmp_path / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == arrays.keys()
        assert len(arrays) == 1 or sum(a.nbytes for a in arrays.values()) <= 3000
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, names[name].data)
    total = sum(part.data.size for part in model.published())
    assert index["metadata"] == {"total_parameters": total, "total_size": 4 * total}


def test_saving_again_in_other_pieces_leaves_none_of_the_old_ones(tmp_path):
    save_pretrained(model_of(), tmp_path, max_shard_size=3000)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_pretrained(model_of(seed=1), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    same(load_pretrained(tmp_path, dtype="float64"), model_of(seed=1))
    save_pretrained(model_of(seed=2), tmp_path, max_shard_size=3000)
    assert not (tmp_path / "model.safetensors").exists()
    same(load_pretrained(tmp_path, dtype="float64"), model_of(seed=2))


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_narrow_formats_round_once_but_never_the_router_bias(tmp_path, dtype, tolerance):
    model = model_of(dtype="float32", **FULL)
    save_pretrained(model, tmp_path, dtype=dtype)
    again = load_pretrained(tmp_path)
    assert again.config.torch_dtype == dtype
    same(again, model, tolerance)
    for (_, one), (_, other) in zip(again.named_buffers(), model.named_buffers()):
        np.testing.assert_array_equal(one.data, other.data)
    save_pretrained(again, tmp_path, dtype=dtype)
    same(load_pretrained(tmp_path), again)


def test_fp8_round_trip(tmp_path):
    """Projections in blocks of FP8, partial at the edges, the rest in bfloat16; then nothing changes."""
    model = model_of(dtype="float32", hidden_size=130, intermediate_size=140, **FULL)
    save_pretrained(model, tmp_path, dtype="fp8")
    again = load_pretrained(tmp_path)
    same(again, model, 0.07)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    golden = json.loads((GOLDEN / "v3_fp8" / "config.json").read_text())
    assert config["quantization_config"] == golden["quantization_config"]
    save_pretrained(again, tmp_path, dtype="fp8")
    same(load_pretrained(tmp_path), again)
    save_pretrained(again, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    same(load_pretrained(tmp_path), again)


@pytest.mark.parametrize("case", CASES)
def test_published_files_come_back_bit_by_bit(tmp_path, case):
    """What was read is written back, unknown fields of config.json included; but not the MTP copies."""
    save_pretrained(load_pretrained(GOLDEN / case), tmp_path)
    before = safetensors.numpy.load_file(GOLDEN / case / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    copies = {name for name in before if name.endswith(("2.embed_tokens.weight", "shared_head.head.weight"))}
    assert after.keys() == before.keys() - copies
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name])
    read = [DeepSeekConfig.from_json(path / "config.json") for path in (GOLDEN / case, tmp_path)]
    assert read[0].replace(torch_dtype="float32") == read[1] and read[0].extra == read[1].extra


def test_mtp_modules_are_as_many_as_the_files_hold(folder):
    """A config may promise modules that were never published (V3's default is 1)."""
    ids = some_ids(1, 5)
    whole = load_pretrained(folder)
    assert len(whole.mtp) == whole.config.num_nextn_predict_layers == 2
    without = load_pretrained(folder, mtp=False)
    assert not without.mtp and without.config.num_nextn_predict_layers == 0
    np.testing.assert_array_equal(without(ids).data, whole(ids).data)

    def drop(arrays):
        for name in [name for name in arrays if name.startswith("model.layers.3.")]:
            del arrays[name]

    change(folder, drop)
    assert len(load_pretrained(folder).mtp) == 1


def test_everything_that_does_not_fit_is_listed_at_once(folder):
    def spoil(arrays):
        del arrays["model.norm.weight"], arrays["model.layers.3.enorm.weight"]
        arrays["model.layers.0.mlp.gate.weight"] = np.ones((2, 2), np.float32)
        arrays[NAME] = np.ones((3, 10), np.float32)
        arrays["lm_head.weight"] = arrays["lm_head.weight"].astype(np.int32)

    change(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(folder)
    lines = str(error.value).splitlines()
    assert str(folder) in lines[0]
    assert sorted(lines[1:]) == [
        "missing: model.layers.3.enorm.weight",
        "missing: model.norm.weight",
        "unexpected: model.layers.0.mlp.gate.weight",
        "wrong format: lm_head.weight is int32 but must be of a floating format",
        f"wrong shape: {NAME} is [3, 10] but must be [5, 10]",
    ]


def test_scales_are_checked_too(tmp_path):
    save_pretrained(model_of(dtype="float32"), tmp_path, dtype="fp8")
    down = NAME.replace("up_proj", "down_proj")

    def spoil(arrays):
        del arrays[f"{NAME}_scale_inv"]
        arrays[f"{down}_scale_inv"] = np.ones((1, 2), np.float32)
        arrays["model.norm.weight_scale_inv"] = np.ones((1, 1), np.float32)

    change(tmp_path, spoil)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(tmp_path)
    assert sorted(str(error.value).splitlines()[1:]) == [
        f"missing: {NAME}_scale_inv, the scales of an FP8 tensor",
        "unexpected: model.norm.weight_scale_inv, as model.norm.weight is no matrix",
        f"wrong shape: {down}_scale_inv is [1, 2] but must be [1, 1]",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="quant_method 'gptq'"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    def spoil(arrays):
        arrays[NAME][1, 2] = arrays["model.norm.weight"][3] = value

    change(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(folder)
    assert sorted(str(error.value).splitlines()[1:]) == [NAME, "model.norm.weight"]


def test_folders_that_are_no_checkpoint(tmp_path, folder):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pretrained(tmp_path / "nowhere")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="it is truncated"):
        load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"
    ):
        load_pretrained(folder)


def test_indexes_that_do_not_fit(tmp_path):
    save_pretrained(model_of(), tmp_path, max_shard_size=3000)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for bad in ("{", "[]", '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "../model.safetensors"}}'):
        index.write_text(bad)
        with pytest.raises(CheckpointError, match="is no index"):
            load_pretrained(tmp_path)
    good["weight_map"]["lm_head.weight"] = good["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(good))
    with pytest.raises(CheckpointError, match="lm_head.weight in model-00001"):
        load_pretrained(tmp_path)
    (tmp_path / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    for path in list(tmp_path.glob("model-*"))[1:]:
        path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_pretrained(tmp_path)


def test_a_failed_save_leaves_the_earlier_checkpoint(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = model_of(dtype="float32", seed=1, **FULL)

    def disk_full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("layers.tensor_file.os.fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_formats_that_no_checkpoint_has(tmp_path):
    with pytest.raises(ValueError, match="dtype is 'int8' but a checkpoint is saved as float64"):
        save_pretrained(model_of(), tmp_path / "model", dtype="int8")
    assert not (tmp_path / "model").exists()


PEAK = """
import resource, sys
from layers import load_pretrained
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_pretrained(sys.argv[1])
size = sum(p.data.nbytes for p in model.parameters())
largest = max(p.data.nbytes for _, p in model.named_parameters())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before * 1024, size, largest)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8"])
def test_loading_needs_memory_for_the_model_and_one_tensor(tmp_path, dtype):
    sizes = {"vocab_size": 40_000, "hidden_size": 256, "intermediate_size": 8192, "first_k_dense_replace": 2}
    model = DeepSeekModel(tiny(**sizes), seed=None)
    for leaf in model.parameters():
        leaf.data[...] = 0.5
    save_pretrained(model, tmp_path, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    peak, size, largest = map(int, done.stdout.split())
    assert size > 100e6
    assert peak < size + largest
