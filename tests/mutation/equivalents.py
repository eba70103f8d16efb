"""Mutants that no test can kill: which and why stands in equivalents.txt."""

from pathlib import Path


def read(text: str) -> dict[str, str]:
    """name -> reason, of the lines behind the head of the file."""
    found, why = {}, ""
    for line in text.partition("\n\n")[2].splitlines():
        if line.startswith("# "):
            why = line.removeprefix("# ")
        elif line:
            found[line] = why
    return found


EQUIVALENT = read(Path(__file__).with_name("equivalents.txt").read_text(encoding="utf-8"))


def reason(name: str) -> str | None:
    """Why this mutant is equivalent, None if it is not listed."""
    for listed, why in EQUIVALENT.items():
        if name == listed or (listed.endswith("*") and name.startswith(listed[:-1])):
            return why
    return None
