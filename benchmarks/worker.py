"""A contender in a process of its own: it reads one command a line, and answers one line of JSON.

Every contender has its own thread pools and its own memory, and sleeps while another one is measured.

    python -m benchmarks.worker ours
    {"do": "train", "batch": 8, "time": 256}   ->   {"seconds": 0.71, "loss": 8.3}
"""

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("config.json")
CONTENDERS = {  # name -> module, class, options
    "ours": ("benchmarks.ours", "Ours", {"kernels": "fused"}),
    "reference": ("benchmarks.ours", "Ours", {"kernels": "reference"}),
    "torch": ("benchmarks.peers.transformers_peer", "Transformers", {"compiled": False}),
    "torch.compile": ("benchmarks.peers.transformers_peer", "Transformers", {"compiled": True}),
    "jax": ("benchmarks.peers.jax_peer", "Jax", {}),
    "policy ours": ("benchmarks.policy", "Policy", {}),
    "policy trl": ("benchmarks.peers.trl_peer", "Trl", {}),
} | {
    f"operations {library}": ("benchmarks.operations.measure", "Operations", {"library": library})
    for library in ("ours", "torch", "autograd", "mygrad", "tinygrad")
}


def resident_mib() -> float:
    """Resident memory of this process now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """The largest resident memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def page_faults() -> int:
    """Page faults of this process so far, those served without the disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def answer(contender: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Do what the command says, and measure it."""
    what = command.pop("do")
    before, faults = resident_mib(), page_faults()
    start = time.perf_counter()
    result = getattr(contender, what)(**command)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "resident_mib": before,
        "peak_mib": peak_mib(),
        "faults": page_faults() - faults,
    } | (result or {})


def main() -> None:
    """Serve commands until the input ends."""
    name, overrides = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    module, cls, options = CONTENDERS[name]
    config = json.loads(CONFIG.read_text()) | overrides
    contender = getattr(importlib.import_module(module), cls)(config, **options)
    print(json.dumps({"ready": name, "versions": contender.versions()}), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(contender, json.loads(line))
        except Exception as error:  # the conductor reports it and goes on with the others
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
