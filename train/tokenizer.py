"""Text to tokens and back: a byte-level BPE trained on the text, or a published `tokenizer.json`.

Byte-level means that the 256 bytes are all in the vocabulary, so that any text can be encoded and comes back
unchanged. Every document is closed by an end token, which is also what the first token is predicted from.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from train.cache import cached, write_aside
from train.errors import UserError

END = "<｜end▁of▁sentence｜>"  # as in DeepSeek's own vocabularies
BYTES = 256
HALF_A_CHARACTER = "\ufffd"  # what decoding makes of bytes that are not UTF-8, or not yet

# What BPE may merge: a word with one sign or space before it, up to three digits, signs with the line ends
# after them, line ends with the indentation that follows, other white space.
WORDS = r"[^\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+\n*|\s*\n *|\s+(?!\S)|\s+"


class Tokenizer:
    """A vocabulary with its rules. Made by `Tokenizer.train` or `Tokenizer.load`."""

    def __init__(self, backend: tokenizers.Tokenizer, end: str):
        end_id = backend.token_to_id(end)
        if end_id is None:
            raise UserError(
                f"the vocabulary has no token {end!r} to close a document with: name one that it has"
            )
        backend.no_truncation()  # a published file may carry the settings of its last batch
        backend.no_padding()
        self.backend = backend
        self.end = end
        self.end_id: int = end_id

    @classmethod
    def train(
        cls, documents: Sequence[str], vocab_size: int, special_tokens: Sequence[str] = ()
    ) -> "Tokenizer":
        """A byte-level BPE of at most `vocab_size` tokens, fewer if the text has no more pairs to merge.

        Ids: 0 the end token, then `special_tokens`, then bytes and merges. The same documents give the same
        vocabulary; it is cached. Raises UserError if `vocab_size` has no room for the bytes.
        """
        special = [END, *special_tokens]
        if len(set(special)) < len(special) or "" in special:
            raise UserError(f"special tokens must be different and not empty, but they are {special}")
        fewest = BYTES + len(special)
        if vocab_size < fewest:
            raise UserError(
                f"vocab_size is {vocab_size}, but {BYTES} bytes and {len(special)} special tokens are "
                f"{fewest}: ask for at least that many"
            )
        key = {
            "version": tokenizers.__version__,
            "words": WORDS,
            "vocab_size": vocab_size,
            "special_tokens": special,
            "documents": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
        }
        text = cached("tokenizer", key, lambda: train_bpe(documents, vocab_size, special).encode())
        return cls(tokenizers.Tokenizer.from_str(text.decode()), END)

    @classmethod
    def load(cls, path: str | Path, end: str | None = None) -> "Tokenizer":
        """A `tokenizer.json`, ours or one of Hugging Face's; `path` is the file or its folder.

        The end token is `end`, else the `eos_token` of the `tokenizer_config.json` beside the file, else
        DeepSeek's. Raises UserError where the file is missing or damaged or has no such token.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{path} does not exist: give a tokenizer.json or the folder of one")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            raise UserError(f"{path} is no tokenizer that this library can read: {error}") from error
        return cls(backend, end or published_end(path.with_name("tokenizer_config.json")) or END)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` that Hugging Face's libraries read; never half of one."""
        write_aside(Path(path), self.backend.to_str(pretty=True).encode())

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: the rows that an embedding needs."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def sha256(self) -> str:
        """Of all rules and tokens: what was encoded under another sha256 means something else."""
        return hashlib.sha256((self.backend.to_str() + self.end).encode()).hexdigest()

    def token_id(self, token: str) -> int:
        """The id of a token by its text. Raises UserError if there is none."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise UserError(f"the vocabulary has no token {token!r}")
        return found

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`, without an end token.

        Where `special` is False the names of special tokens in the text are letters like any others, so a
        document that mentions them cannot end itself; where it is True they become those tokens.
        """
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """`encode` for many texts at once, on all cores."""
        self.backend.encode_special_tokens = not special  # the library's "encode" means: as plain text
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of `ids`, with special tokens if `special`. What is no UTF-8 becomes U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=not special)

    def stream(self, special: bool = False) -> "StreamDecoder":
        """A decoder that takes ids as they are generated."""
        return StreamDecoder(self, special)


class StreamDecoder:
    """Text from ids that come one by one: the pieces add up to `decode` of all ids.

    A character may span several tokens. A piece is therefore held back while it ends in U+FFFD, which is
    what the first bytes of a character decode to. `ids[:shown]` has been given out and ends with a whole
    character; decoding goes on from `start`, one piece earlier, because some decoders treat a first token
    specially. (Decoders with byte fallback turn a whole run of bytes into U+FFFD for one that is wrong. There
    the sum is exact for the ids of any text, and not for bytes that make none.)
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False):
        self.tokenizer = tokenizer
        self.special = special
        self.ids: list[int] = []
        self.start = 0
        self.shown = 0

    def push(self, *ids: int) -> str:
        """The text that is now certain, "" while a character is unfinished."""
        self.ids += map(int, ids)
        text = self._pending()
        if not text or text.endswith(HALF_A_CHARACTER):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return text

    def finish(self) -> str:
        """What was held back: an unfinished character, as U+FFFD."""
        text = self._pending()
        self.start = self.shown = len(self.ids)
        return text

    def _pending(self) -> str:
        before = self.tokenizer.decode(self.ids[self.start : self.shown], self.special)
        return self.tokenizer.decode(self.ids[self.start :], self.special)[len(before) :]


def train_bpe(documents: Iterable[str], vocab_size: int, special_tokens: list[str]) -> str:
    """Train a byte-level BPE; returns its tokenizer.json."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return backend.to_str()


def published_end(config: Path) -> str | None:
    """The `eos_token` of a `tokenizer_config.json`, written as a string or as an object with `content`."""
    try:
        end = json.loads(config.read_text("utf-8")).get("eos_token")
    except (OSError, ValueError):
        return None
    return end["content"] if isinstance(end, dict) else end
