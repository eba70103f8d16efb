"""Mutants that no test can kill, because they compute the same: by name, with the reason.

A name is what `python -m tests.mutation` prints for a survivor; it holds no line number. A `*` at the end
stands for any rest.
"""

EQUIVALENT: dict[str, str] = {}


def reason(name: str) -> str | None:
    """Why this mutant is equivalent, None if it is not listed."""
    for listed, why in EQUIVALENT.items():
        if name == listed or (listed.endswith("*") and name.startswith(listed[:-1])):
            return why
    return None
