"""A step of GRPO beside TRL's, and what a rollout costs beside bare decoding."""

import statistics
from typing import Any

from benchmarks.conductor import first_error, in_turn, spread
from benchmarks.policy import GROUP, PROMPTS
from benchmarks.speed import Say, opened

NAMES = ["policy ours", "policy trl"]
STEPS = 5  # of reinforcement in one measurement


def measure(rounds: int, say: Say) -> dict[str, Any]:
    """Seconds of a step, in turn; tokens a second of a rollout of as many sequences and of bare decoding."""
    rows: dict[str, Any] = {}
    running, contenders = [], opened(NAMES, rows)
    for contender in contenders:
        say(f"{contender.name}: first steps (they may compile)")
        built = contender.ask("build")
        if error := first_error([built, contender.ask("grpo", steps=1)]):
            rows[contender.name]["error"] = error
            continue
        rows[contender.name]["parameters"] = built["parameters"]
        running.append(contender)
    say(f"{rounds} times {STEPS} steps each, in turn")
    for name, answers in in_turn(running, rounds, "grpo", steps=STEPS).items():
        if error := first_error(answers):
            rows[name]["error"] = error
            continue
        rows[name] |= {
            "seconds": spread([seconds for answer in answers for seconds in answer["each"]]),
            "length": statistics.mean(answer["length"] for answer in answers),
        }
    if ours := rows["policy ours"].get("seconds"):
        for row in rows.values():
            if "seconds" in row:
                row["ours_is"] = row["seconds"]["median"] / ours["median"]
    say("rollout and bare decoding")
    decoding: dict[str, Any] = {}
    for ours in (contender for contender in running if contender.name == NAMES[0]):
        answers = [ours.ask("decoding", batch=PROMPTS * GROUP) for _ in range(rounds + 1)][1:]
        if error := first_error(answers):
            rows[ours.name]["error"] = error
        else:
            ways = ("bare", "rollout", "groups")
            decoding = {way: spread([answer[way] for answer in answers]) for way in ways}
    for contender in contenders:
        contender.close()
    return {"contenders": rows, "decoding": decoding}
