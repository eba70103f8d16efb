"""What a run of mutants found, by file, with every survivor's change."""

from collections import defaultdict
from collections.abc import Iterable

from tests.mutation.equivalents import reason
from tests.mutation.worker import Outcome


def survivors(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The mutants that no test killed, tried or not, and that are not listed as equivalent."""
    return [
        each
        for each in outcomes
        if each.verdict in ("survived", "untried") and reason(each.mutant.name) is None
    ]


def table(outcomes: list[Outcome]) -> str:
    """A line for each file: mutants, killed, equivalent, survived, score, seconds of the processor."""
    files: dict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        files[each.mutant.target.file].append(each)
    lines = [
        f"{'file':<40}{'mutants':>9}{'killed':>8}{'timeouts':>10}{'equivalent':>12}{'survived':>10}{'score':>8}"
        f"{'seconds':>9}"
    ]
    for name, found in [*sorted(files.items()), ("all", outcomes)]:
        lines.append(row(name, found))
    return "\n".join(lines)


def row(name: str, found: list[Outcome]) -> str:
    """One line of the table. A mutant that hangs the tests is caught too."""
    timeouts = sum(each.verdict == "timeout" for each in found)
    killed = sum(each.verdict == "killed" for each in found)
    left = len(survivors(found))
    equivalent = len(found) - killed - timeouts - left
    judged = len(found) - equivalent
    seconds = sum(each.seconds for each in found)
    score = (killed + timeouts) / judged if judged else 1.0
    counts = f"{len(found):>9}{killed:>8}{timeouts:>10}{equivalent:>12}{left:>10}"
    return f"{name:<40}{counts}{score:>8.1%}{seconds:>9.0f}"


def details(outcomes: list[Outcome]) -> str:
    """Every survivor: its name, its line, and what changed."""
    blocks = []
    for each in survivors(outcomes):
        mutant = each.mutant
        blocks.append(
            f"{mutant.target.file}:{mutant.line} in {mutant.target.function} ({mutant.kind}) {each.by}\n"
            f"- {mutant.before}\n+ {mutant.after}"
        )
    return "\n\n".join(blocks)
