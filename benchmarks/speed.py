"""Training, decoding, memory and start of the bench model, beside peers in the same run."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.conductor import Contender, in_turn, spread
from benchmarks.limits import bandwidth, sgemm_rate, training_flop

BATCH, TIME = 8, 256
Say = Callable[[str], None]


def opened(names: list[str], say: Say, **settings: Any) -> list[Contender]:
    """The contenders that can be started here."""
    contenders = []
    for name in names:
        contender = Contender(name, **settings)
        if not contender.runs:
            say(f"{name} cannot be started here and is left out")
            continue
        contenders.append(contender)
    return contenders


def train(config: dict[str, Any], names: list[str], rounds: int, say: Say) -> dict[str, Any]:
    """Seconds a step, tokens a second and growth of memory, in turn; the sgemm rate before and after."""
    contenders = opened(names, say)
    rates = [sgemm_rate()]
    rows: dict[str, Any] = {}
    for contender in contenders:
        built = contender.ask("build")
        say(f"{contender.name}: first step (this may compile)")
        warm = [contender.ask("train", batch=BATCH, time=TIME) for _ in range(5)]
        if error := built.get("error") or warm[-1].get("error"):
            say(f"{contender.name} failed: {error}")
            rows[contender.name] = {"error": error}
            continue
        rows[contender.name] = {
            "versions": contender.versions,
            "first_step_seconds": warm[0]["seconds"],
            "memory_growth_mib": warm[-1]["peak_mib"] - built["resident_mib"],
        }
    running = [contender for contender in contenders if "error" not in rows[contender.name]]
    say(f"{rounds} steps each, in turn")
    for name, answers in in_turn(running, rounds, "train", batch=BATCH, time=TIME).items():
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
    for name in (contender.name for contender in running):
        rows[name]["share_of_floor"] = floor / rows[name]["seconds"]["median"]
    return {"sgemm_flop_per_second": rates, "floor_seconds": floor, "contenders": rows}


def decode(config: dict[str, Any], names: list[str], rounds: int, say: Say) -> dict[str, Any]:
    """Tokens a second at batch 1 and 8, behind 16 and 512 tokens, in turn."""
    contenders = opened(names, say)
    for contender in contenders:
        contender.ask("build")
    table: dict[str, Any] = {}
    for batch in (1, 8):
        for context in (16, 512):
            say(f"batch {batch}, behind {context} tokens")
            arguments = {"batch": batch, "context": context}
            in_turn(contenders, 1, "decode", new=4, **arguments)
            answers = in_turn(contenders, rounds, "decode", new=64, **arguments)
            for name, replies in answers.items():
                seconds = spread([reply["seconds_per_step"] for reply in replies])
                row = {"seconds_per_step": seconds, "tokens_per_second": batch / seconds["median"]}
                table.setdefault(name, {})[f"batch {batch}, context {context}"] = row
    for contender in contenders:
        contender.close()
    limit = bandwidth()
    weights = active_bytes(config)
    for batch_1 in (rows["batch 1, context 16"] for rows in table.values()):
        batch_1["share_of_bandwidth"] = weights / limit / batch_1["seconds_per_step"]["median"]
    return {"bandwidth_bytes_per_second": limit, "active_weight_bytes": weights, "contenders": table}


def active_bytes(config: dict[str, Any]) -> float:
    """Bytes of the weights that one token reads: its experts only, one row of the embedding."""
    return training_flop(config, 1, 1) / 6 * 4


def start(say: Say, rounds: int = 5) -> dict[str, Any]:
    """Seconds to import the engine, and from a new process to the end of the first step with warm caches."""
    imports, steps = [], []
    probe = "import time; t = time.perf_counter(); import tinygrad_ds; print(time.perf_counter() - t)"
    first = (
        "import json, sys; from benchmarks.worker import CONFIG; from benchmarks.ours import Ours;"
        "ours = Ours(json.loads(CONFIG.read_text()), 'fused'); ours.build(); ours.train(1, 16)"
    )
    for _ in range(rounds):
        output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        imports.append(float(output.stdout))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", first], check=True, capture_output=True)
        steps.append(time.perf_counter() - began)
    say("imports and first steps measured")
    return {"import_seconds": spread(imports), "process_to_first_step_seconds": spread(steps)}
