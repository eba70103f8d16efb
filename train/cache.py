"""Results that cost seconds and depend on nothing but their key, kept on disk between runs.

The folder is $TINYGRAD_DS_CACHE, else $XDG_CACHE_HOME/tinygrad_ds, else ~/.cache/tinygrad_ds. It may be
deleted at any time: everything in it is made again when it is missing, cut short or damaged.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

DIGEST_BYTES = 32


def cache_folder() -> Path:
    """The folder of cached results; it need not exist."""
    if own := os.environ.get("TINYGRAD_DS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinygrad_ds"


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, then rename: a reader finds the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only the owner may read; a result should be as readable as any other file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def cached(name: str, key: Mapping[str, object], make: Callable[[], bytes]) -> bytes:
    """What `make()` returned for this `key`, from disk where it is there and whole.

    `key` holds JSON values and must name everything that the result depends on, versions included. A cache
    that cannot be written is passed over in silence: it saves time and must never stop a run.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"{name}-{digest[:24]}.bin"
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    payload = stored[DIGEST_BYTES:]
    if len(stored) >= DIGEST_BYTES and hashlib.sha256(payload).digest() == stored[:DIGEST_BYTES]:
        return payload
    payload = make()
    try:
        write_aside(path, hashlib.sha256(payload).digest() + payload)
    except OSError:
        pass
    return payload
