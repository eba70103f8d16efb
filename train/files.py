"""The user's own text: files, folders, .gz."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from train.errors import UserError

HEAD_BYTES = 1 << 16
PIECE_CHARACTERS = 8192
SHARE_OF_ONE = 50  # a document longer than 1/50 of the text is cut


def read_files(paths: Sequence[str | Path], say: Callable[[str], None]) -> list[str]:
    """The documents of files and folders, in the order given; folders recursively, by sorted path.

    A file is a document, but one that holds more than a fiftieth of the whole text is cut at blank lines into
    pieces of 4 to 8 kB (less for a small text): a single large file too has documents to hold out.

    In a folder every file counts that is UTF-8 text, whatever its name (.gz: inside); hidden ones and others
    are passed over and their number is said. A file that is named outright must be text.

    Raises UserError for a missing path, a folder without text, or a named file that is no UTF-8 text.
    """
    texts: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            texts += read_folder(path, say)
        elif path.is_file():
            texts.append(read_file(path))
        elif path.exists():
            raise UserError(f"{path} is neither a file nor a folder")
        else:
            raise UserError(f"{path} does not exist: give files or folders of UTF-8 text")
    largest = max(sum(map(len, texts)) // SHARE_OF_ONE, 1)
    return [
        piece
        for text in texts
        for piece in (cut(text, min(largest, PIECE_CHARACTERS)) if len(text) > largest else [text])
    ]


def read_folder(folder: Path, say: Callable[[str], None]) -> list[str]:
    """All UTF-8 text under `folder`."""
    texts, passed_over = [], 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for path in (Path(place, name) for name in sorted(files) if not name.startswith(".")):
            try:
                if not path.is_file():
                    raise UserError(f"{path} is not a regular file")
                texts.append(read_file(path))
            except UserError:
                passed_over += 1
    if not texts:
        raise UserError(f"{folder} holds no UTF-8 text file ({passed_over} others): give another folder")
    if passed_over:
        say(f"{folder}: {len(texts)} text files, {passed_over} others passed over")
    return texts


def read_file(path: Path) -> str:
    """One file as text, .gz unpacked, a byte order mark dropped, line ends made '\\n'. Raises UserError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(HEAD_BYTES)
            if b"\0" not in data:  # a large binary file is known by its beginning
                data += file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or no gzip file ({error}): unpack it by other means") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if (at := data.find(b"\0")) >= 0:
        raise UserError(f"{path} is binary, not text: byte 0x00 at offset {at}; give UTF-8 text")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it, for example with iconv -t UTF-8"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters, each but the last of at least half of it, whose sum is `text`.

    A piece ends after a blank line where its second half has one, else after a line, else after a space.
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        for mark in ("\n\n", "\n", " "):
            at = text.rfind(mark, start + limit // 2, end)
            if at >= 0:
                end = at + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]
