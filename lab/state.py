"""What the lab remembers between commands: the last numeric checks, and which exercises are done.

The folder is $TINYGRAD_DS_LAB, else runs/lab below the current folder. A damaged file counts as none.
"""

import json
import os
from pathlib import Path
from typing import Any

from train.cache import write_aside


def folder() -> Path:
    """Where it is kept; it need not exist."""
    return Path(os.environ.get("TINYGRAD_DS_LAB") or "runs/lab")


def remembered(name: str) -> dict[str, Any]:
    """What was kept under `name`, {} if nothing was or it cannot be read."""
    try:
        found = json.loads((folder() / f"{name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(name: str, **news: Any) -> None:
    """Add to what is kept under `name`; written aside and renamed, so that no reader sees half of it."""
    kept = remembered(name) | news
    write_aside(folder() / f"{name}.json", (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode())
