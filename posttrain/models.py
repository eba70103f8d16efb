"""Networks with their vocabulary: from run folders and published checkpoints, and copies of them."""

from pathlib import Path
from typing import NamedTuple

from layers import DeepSeekModel
from train.checkpoint import Checkpoints, load_model
from train.errors import UserError
from train.tokenizer import Tokenizer


class Speaker(NamedTuple):
    """A network and the vocabulary that it speaks."""

    model: DeepSeekModel
    tokenizer: Tokenizer


def load(folder: Path) -> Speaker:
    """The network of a run's newest checkpoint, or of a published checkpoint. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name a run, or a checkpoint with config.json and weights")
    weights = folder
    if (folder / "checkpoints").is_dir():
        weights = Checkpoints(folder / "checkpoints").latest()
    elif not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds neither checkpoints nor a config.json: name a run, or a published checkpoint"
        )
    tokenizer = Tokenizer.load(folder)
    model = load_model(weights)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the vocabulary of {folder} has {tokenizer.vocab_size} tokens but its network "
            f"{model.config.vocab_size}: they do not belong together"
        )
    return Speaker(model, tokenizer)


def require_one_vocabulary(teacher: Tokenizer, student: Tokenizer) -> None:
    """Raise UserError where teacher and student would mean different things by an id."""
    if teacher.sha256 != student.sha256:
        raise UserError(
            f"teacher and student have different vocabularies ({teacher.vocab_size} and "
            f"{student.vocab_size} tokens, sha256 {teacher.sha256[:12]} and {student.sha256[:12]}): logits "
            "can be distilled within one vocabulary only; fine-tune on the teacher's chains instead"
        )


def copy_of(model: DeepSeekModel) -> DeepSeekModel:
    """Another network with the same weights."""
    other = DeepSeekModel(model.config, seed=None, dtype=model.dtype.name)
    copy_weights(model, other)
    return other


def copy_weights(source: DeepSeekModel, target: DeepSeekModel) -> None:
    """Give `target` the weights and router biases of `source`."""
    for theirs, ours in zip(source.published(), target.published(), strict=True):
        ours.data[...] = theirs.data
        ours.leaf.written()
