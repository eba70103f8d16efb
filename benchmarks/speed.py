"""Training and decoding of the bench model, its memory and page faults, beside peers in the same run."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.conductor import Contender, first_error, in_turn, spread
from benchmarks.limits import decoding_bytes, read_bandwidth, sgemm_rate, training_flop

BATCH, TIME = 8, 256
CASES = [(batch, context) for batch in (1, 8) for context in (16, 512)]
NEW = 64  # tokens decoded in one measurement
Say = Callable[[str], None]


def case_name(batch: int, context: int) -> str:
    """How a case of decoding is called in results."""
    return f"batch {batch}, context {context}"


def opened(names: list[str], rows: dict[str, Any]) -> list[Contender]:
    """The contenders that can be started here; `rows` says why the others cannot."""
    contenders = [Contender(name) for name in names]
    for contender in contenders:
        row = {"error": contender.error} if contender.error else {"versions": contender.versions}
        rows[contender.name] = row
    return [contender for contender in contenders if contender.error is None]


def beside_ours(rows: dict[str, Any]) -> None:
    """Note in every row how many times as fast ours was in the same run."""
    if ours := rows.get("ours", {}).get("tokens_per_second"):
        for row in rows.values():
            if "tokens_per_second" in row:
                row["ours_is"] = ours / row["tokens_per_second"]


def train(config: dict[str, Any], names: list[str], rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step, tokens a second and growth of memory, in turn; the sgemm rate before and after."""
    rows: dict[str, Any] = {}
    running, rates = [], [sgemm_rate()]
    contenders = opened(names, rows)
    for contender in contenders:
        built = contender.ask("build")
        say(f"{contender.name}: first steps (they may compile)")
        warm = [contender.ask("train", batch=BATCH, time=TIME) for _ in range(5)]
        if error := first_error([built, *warm]):
            rows[contender.name]["error"] = error
            continue
        rows[contender.name] |= {
            "first_step_seconds": warm[0]["seconds"],
            "memory_growth_mib": warm[-1]["peak_mib"] - built["resident_mib"],
        }
        running.append(contender)
    say(f"{rounds} steps each, in turn")
    for name, answers in in_turn(running, rounds, "train", batch=BATCH, time=TIME).items():
        if error := first_error(answers):
            rows[name]["error"] = error
            continue
        seconds = spread([answer["seconds"] for answer in answers])
        rows[name] |= {
            "seconds": seconds,
            "tokens_per_second": BATCH * TIME / seconds["median"],
            "page_faults_per_step": statistics.median(answer["faults"] for answer in answers),
        }
    for contender in contenders:
        contender.close()
    rates.append(sgemm_rate())
    floor = training_flop(config, BATCH, TIME) / statistics.mean(rates)
    for row in rows.values():
        if "seconds" in row:
            row["share_of_floor"] = floor / row["seconds"]["median"]
    beside_ours(rows)
    return {"sgemm_flop_per_second": rates, "floor_seconds": floor, "contenders": rows}


def decode(config: dict[str, Any], names: list[str], rounds: int, say: Say) -> dict[str, Any]:
    """Tokens a second at batch 1 and 8, behind 16 and 512 tokens, in turn; and the share of the bandwidth."""
    started: dict[str, Any] = {}
    contenders = opened(names, started)
    rate = read_bandwidth()
    table: dict[str, Any] = {name: row for name, row in started.items() if "error" in row}
    for contender in contenders:
        if error := contender.ask("build").get("error"):
            table[contender.name] = {"error": error}
    running = [contender for contender in contenders if contender.name not in table]
    for batch, context in CASES:
        arguments = {"batch": batch, "context": context}
        for contender in running:
            say(f"batch {batch} behind {context} tokens: first tokens of {contender.name} (they may compile)")
            contender.ask("decode", new=NEW, **arguments)
        say(f"batch {batch} behind {context} tokens, in turn")
        rows: dict[str, Any] = {}
        for name, answers in in_turn(running, rounds, "decode", new=NEW, **arguments).items():
            if error := first_error(answers):
                rows[name] = {"error": error}
                continue
            seconds = spread([answer["seconds_per_step"] for answer in answers])
            limit = decoding_bytes(config, batch, context + NEW // 2) / rate
            rows[name] = {
                "seconds_per_step": seconds,
                "tokens_per_second": batch / seconds["median"],
                "share_of_bandwidth": limit / seconds["median"],
            }
        beside_ours(rows)
        for name, row in rows.items():
            table.setdefault(name, {})[case_name(batch, context)] = row
    for contender in contenders:
        contender.close()
    return {"read_bytes_per_second": rate, "contenders": table}


def profile(say: Say) -> dict[str, Any]:
    """Seconds and saved bytes by primitive, of one training step."""
    contender = Contender("ours")
    contender.ask("build")
    say("one step, watched")
    contender.ask("train", batch=BATCH, time=TIME)
    shares = contender.ask("profile", batch=BATCH, time=TIME)["shares"]
    contender.close()
    return shares
