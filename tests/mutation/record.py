"""What earlier runs found, in a file of one line for each mutant, so that a run can go on where it stopped.

A mutant that was killed stays killed while the file that it changes is the same, since tests are only added.
One that survived is tried again: a new test may kill it.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from tests.mutation.targets import ROOT, Mutant
from tests.mutation.worker import Outcome


@cache
def digest(file: str) -> str:
    """What tells one state of a file from another."""
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:16]


def add(path: Path, outcome: Outcome) -> None:
    """Write an outcome down, as soon as it is known."""
    line = {
        "file": digest(outcome.mutant.target.file),
        "name": outcome.mutant.name,
        "number": outcome.mutant.number,
        "verdict": outcome.verdict,
        "by": outcome.by,
        "seconds": round(outcome.seconds, 2),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def killed_before(path: Path, asked: list[Mutant]) -> list[Outcome]:
    """Those of the mutants asked for that the file knows to be killed. A damaged line counts as none."""
    known = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                if line["verdict"] in ("killed", "timeout"):
                    known[line["file"], line["name"], line["number"]] = line
            except (ValueError, KeyError, TypeError):
                continue
    found = []
    for mutant in asked:
        line = known.get((digest(mutant.target.file), mutant.name, mutant.number))
        if line is not None:
            found.append(Outcome(mutant, line["verdict"], line["by"], line["seconds"]))
    return found
