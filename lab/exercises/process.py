"""The grader's own process: `python -m lab.exercises.process EXERCISE FILE RESULT`.

It runs the answer under limits on memory, processor time and written files, with one thread and the reference
forms, and writes a verdict as JSON to RESULT. Whatever the answer does, this process alone suffers it.
"""

import json
import os
import resource
import sys
from pathlib import Path

from lab.exercises import LADDER
from lab.exercises.examine import Trouble, Verdict, called, examine

MEMORY = 1 << 30  # bytes beyond what the process has before the answer runs
SECONDS = 10  # of processor time
WRITTEN = 1 << 20  # bytes in any one file


def main() -> None:
    """Judge one file."""
    name, path, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    note(result, Verdict("hang", "the file itself does not come to its end, as in an endless loop"))
    limit()
    try:
        verdict = judged(name, path, result)
    except SystemExit:
        verdict = Verdict("crash", "the file calls exit")
    except MemoryError:
        verdict = Verdict("memory", f"the file needs more than {MEMORY >> 20} MB")
    note(result, verdict)
    sys.stdout.flush()
    os._exit(0)  # not even an answer's atexit function runs on


def judged(name: str, path: Path, result: Path) -> Verdict:
    """Run the file, then examine its two functions."""
    scope: dict = {"__name__": "exercise", "__file__": str(path)}
    try:
        code = compile(path.read_text(encoding="utf-8"), "exercise", "exec")
        called("the file", lambda: exec(code, scope))
        for function in ("forward", "backward"):
            if not callable(scope.get(function)):
                raise Trouble("crash", f"the file has no function {function}")
        words = "backward does not come to its end, as in an endless loop"
        note(result, Verdict("hang", words))
        return examine(LADDER[name], scope["forward"], scope["backward"])
    except Trouble as trouble:
        return Verdict(trouble.kind, trouble.words)


def note(result: Path, verdict: Verdict) -> None:
    """Write a verdict, the last word unless another follows."""
    aside = result.with_suffix(".part")
    aside.write_text(json.dumps(verdict._asdict()), encoding="utf-8")
    aside.replace(result)


def limit() -> None:
    """From here on the process may have only so much."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    allowed = pages * resource.getpagesize() + MEMORY
    for kind, most in (
        (resource.RLIMIT_AS, allowed),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, WRITTEN),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
