"""Checkpoints in the published format: `config.json` with `model.safetensors`, or shards and their index."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from layers.block_scales import (
    BLOCK,
    E4M3,
    SUFFIX,
    block_scales,
    is_quantised,
    quantise,
)
from layers.config import DeepSeekConfig
from layers.model import DeepSeekModel
from layers.module import Part, hollow
from layers.tensor_file import CheckpointError, Planned, Stored, read_header, write_file
from tinygrad_ds.device import place, to_host
from tinygrad_ds.dtypes import dtype as named_dtype
from tinygrad_ds.dtypes import is_floating
from tinygrad_ds.ops.quantize import expand, scales_shape

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT32 = np.dtype("float32")
SAVED = ("float64", "float32", "float16", "bfloat16", "fp8")
FP8_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}


def load_pretrained(folder: str | os.PathLike, dtype: str = "float32", *, mtp: bool = True) -> DeepSeekModel:
    """The model in a folder, its weights cast to `dtype`. Needs memory for the model and one tensor.

    mtp: load the MTP modules too, as many as the files hold. Raises ConfigError or CheckpointError, which
    lists all tensors that are missing, unexpected, of a wrong shape, or not finite.
    """
    model, fill = open_pretrained(folder, dtype, mtp=mtp)
    model.allocate()
    fill(model)
    return model


def open_pretrained(
    folder: str | os.PathLike, dtype: str = "float32", *, mtp: bool = True
) -> tuple[DeepSeekModel, Callable[[DeepSeekModel], None]]:
    """The model in a folder, hollow, and what reads the weights of it, or of any part of it.

    Both raise what `load_pretrained` does; all names and shapes are checked before any weight is read.
    """
    folder = Path(folder)
    config = DeepSeekConfig.from_json(folder)
    block = read_block_size(config)
    stored = stored_tensors(folder)
    beyond = [name for name in stored if layer_of(name) >= config.num_hidden_layers]
    found = len({layer_of(name) for name in beyond})
    depths = min(found, config.num_nextn_predict_layers) if mtp else 0
    with hollow():
        model = DeepSeekModel(config.replace(num_nextn_predict_layers=depths), seed=None, dtype=dtype)

    parts = {part.name: part for part in model.published()}
    ignored = {name for name in beyond if repeats_trunk(name) or not mtp}
    if config.tie_word_embeddings:
        ignored.add("lm_head.weight")
    scales = {name for name in stored if name.removesuffix(SUFFIX) in parts and name.endswith(SUFFIX)}
    problems = [f"missing: {name}" for name in parts if name not in stored]
    problems += [f"unexpected: {name}" for name in stored if name not in parts.keys() | ignored | scales]
    for name in sorted(parts.keys() & stored.keys()):
        problems += wrong_shapes(parts[name], stored[name], stored.get(name + SUFFIX), block)
    if problems:
        raise CheckpointError(f"{folder} does not fit its config.json:\n" + "\n".join(problems))

    def fill(model: DeepSeekModel) -> None:
        for part in model.published():
            for rows, values in pieces(stored[part.name], stored.get(part.name + SUFFIX), block):
                part.data[rows] = place(values.astype(model.dtype))
        broken = [part.name for part in model.published() if not finite(part)]
        if broken:
            raise CheckpointError(f"{folder} has weights that are NaN or infinite in:\n" + "\n".join(broken))

    return model, fill


def layer_of(name: str) -> int:
    """3 for `model.layers.3.mlp.gate.weight`, -1 for what is in no layer."""
    words = name.split(".")
    return int(words[2]) if words[:2] == ["model", "layers"] and words[2].isdigit() else -1


def repeats_trunk(name: str) -> bool:
    """Is this the copy of embedding or head that published files keep in an MTP layer?"""
    return name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))


def read_block_size(config: DeepSeekConfig) -> tuple[int, int]:
    """Rows and columns that share a scale. Raises CheckpointError for another way of quantising."""
    settings = FP8_CONFIG | (config.quantization_config or {})
    if (settings["quant_method"], settings["fmt"]) != ("fp8", "e4m3"):
        raise CheckpointError(
            f"quantization_config has quant_method {settings['quant_method']!r} and fmt {settings['fmt']!r}, "
            "but only fp8 in e4m3 with scales for blocks can be read"
        )
    rows, columns = settings["weight_block_size"]
    return rows, columns


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name. Raises CheckpointError where files are missing or contradict."""
    if (folder / FILE).exists():
        return read_header(folder / FILE)
    if not (folder / INDEX).exists():
        raise CheckpointError(f"{folder} has neither {FILE} nor {INDEX}: name the folder of a checkpoint")
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if any(Path(name).name != name for name in names):  # a shard lies beside its index, nowhere else
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{folder / INDEX} is no index: its weight_map should name files") from None
    shards = {name: read_header(folder / name) for name in names}
    lost = [f"{name} in {file}" for name, file in weight_map.items() if name not in shards[file]]
    if lost:
        raise CheckpointError(f"{folder / INDEX} names tensors that are not there:\n" + "\n".join(lost))
    return {name: shards[file][name] for name, file in weight_map.items()}


def wrong_shapes(part: Part, stored: Stored, scale: Stored | None, block: tuple[int, int]) -> Iterator[str]:
    """What is wrong with one tensor, as sentences."""
    if stored.shape != part.data.shape:
        yield f"wrong shape: {part.name} is {list(stored.shape)} but must be {list(part.data.shape)}"
    elif not is_floating(stored.dtype):
        yield f"wrong format: {part.name} is {stored.dtype} but must be of a floating format"
    elif stored.dtype == E4M3 and scale is None:
        yield f"missing: {part.name + SUFFIX}, the scales of an FP8 tensor"
    elif scale is not None and len(stored.shape) != 2:
        yield f"unexpected: {part.name + SUFFIX}, as {part.name} is no matrix"
    elif scale is not None and scale.shape != scales_shape(stored.shape, block):
        shape = list(scales_shape(stored.shape, block))
        yield f"wrong shape: {part.name + SUFFIX} is {list(scale.shape)} but must be {shape}"


def pieces(
    stored: Stored, scale: Stored | None, block: tuple[int, int]
) -> Iterator[tuple[slice, np.ndarray]]:
    """A tensor by slices of rows, scaled where it has scales: no second copy of the whole is ever made."""
    values = stored.map()
    step = block[0] * 8
    for start in range(0, len(values), step):
        rows = slice(start, min(start + step, len(values)))
        if scale is None:
            yield rows, values[rows]
        else:
            scales = scale.map()[start // block[0] : -(-rows.stop // block[0])]
            piece = values[rows].astype(np.float32)
            piece *= expand(scales, piece.shape, block)
            yield rows, piece


def finite(part: Part) -> bool:
    """Whether all entries are; the extremes are NaN if one entry is."""
    return not part.data.size or bool(np.isfinite(to_host(part.data.max() - part.data.min())))


def save_pretrained(
    model: DeepSeekModel,
    folder: str | os.PathLike,
    *,
    dtype: str | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write `config.json` and the weights so that other programs read them too.

    dtype: float64, float32, float16, bfloat16 or fp8 (projections in FP8 with scales by block, the rest
    bfloat16); None: the model's own. max_shard_size: bytes in a file at most, unless one tensor has more.
    Files are written aside and renamed when all of them are complete.
    """
    dtype = dtype or model.dtype.name
    if dtype not in SAVED:
        raise ValueError(f"dtype is {dtype!r} but a checkpoint is saved as {', '.join(SAVED)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = cut(list(planned(model, dtype)), max_shard_size)
    names = [FILE] if len(shards) == 1 else [shard_name(i, len(shards)) for i in range(len(shards))]
    aside = {name: folder / f"{name}.part" for name in [*names, *([INDEX] if len(names) > 1 else [])]}
    try:
        for name, shard in zip(names, shards):
            write_file(aside[name], shard)
        if len(names) > 1:
            aside[INDEX].write_text(index_text(dict(zip(names, shards))), encoding="utf-8")
        stale = {path for path in folder.glob("model*.safetensors*") if path.suffix != ".part"}
        for name, path in aside.items():
            path.replace(folder / name)
            stale.discard(folder / name)
        for path in stale:  # of an earlier save in other pieces
            path.unlink()
        saved_config(model.config, dtype).save(folder)
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)


def planned(model: DeepSeekModel, dtype: str) -> Iterator[Planned]:
    """What the files of a model hold, in order."""
    wide = named_dtype("bfloat16" if dtype == "fp8" else dtype)
    for part in model.published():
        name, shape = part.name, part.data.shape
        if dtype == "fp8" and is_quantised(name):
            yield Planned(name, E4M3, shape, partial(made, part, quantise))
            yield Planned(
                name + SUFFIX, FLOAT32, scales_shape(shape, (BLOCK, BLOCK)), partial(made, part, block_scales)
            )
        else:
            narrow = wide.itemsize < 4 and name.endswith("e_score_correction_bias")  # published in float32
            yield Planned(name, FLOAT32 if narrow else wide, shape, partial(made, part, np.asarray))


def made(part: Part, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A tensor of the model, changed on its way to the file."""
    return change(to_host(part.data))


def cut(tensors: list[Planned], limit: int) -> list[list[Planned]]:
    """Shards of at most `limit` bytes, in order."""
    shards: list[list[Planned]] = [[]]
    filled = 0
    for each in tensors:
        if shards[-1] and filled + each.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(each)
        filled += each.nbytes
    return shards


def shard_name(i: int, count: int) -> str:
    """model-00001-of-00004.safetensors"""
    return f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def index_text(shards: dict[str, list[Planned]]) -> str:
    """The index beside shards: which tensor is in which file."""
    every = [each for shard in shards.values() for each in shard]
    parameters = sum(int(np.prod(each.shape)) for each in every if not each.name.endswith(SUFFIX))
    metadata = {"total_parameters": parameters, "total_size": sum(each.nbytes for each in every)}
    weight_map = {each.name: file for file, shard in shards.items() for each in shard}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def saved_config(config: DeepSeekConfig, dtype: str) -> DeepSeekConfig:
    """The config that belongs to files of this format."""
    if dtype == "fp8":
        return config.replace(torch_dtype="bfloat16", quantization_config=FP8_CONFIG)
    return config.replace(torch_dtype=dtype, quantization_config=None)
