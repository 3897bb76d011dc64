"""A whole forward pass of a trillion parameters: time and memory on this computer, both fidelities.

Each run is the command that a user types, in a process of its own; one token through all layers,
weights made as they are needed. Run with `python benchmarks/bench_forward.py [MODEL]`; it takes
some minutes for each fidelity.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record

FIDELITIES = ("fast", "faithful")


def run(model: str, fidelity: str) -> dict[str, Any]:
    """Run `lpu check MODEL --layers all` and read what it reports."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.json"
        options = ["--layers", "all", "--weights", "synthetic", "--fidelity", fidelity]
        call = f"from sharding.cli.main import main; main({['check', model, *options]!r} + "
        call += f"['--json', {str(path)!r}])"
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-c", call], check=True, stdout=subprocess.DEVNULL)
        wall_s, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        (row,) = json.loads(path.read_text(encoding="utf-8"))["results"]
    cpu_s = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    kept = ("name", "kl_nats", "top1_agreement", "logits_sqnr_db", "choices", "flips")
    return {
        "what": f"check {model} {' '.join(options)}",
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "peak_rss_gb": round(row["peak_rss_bytes"] / 1e9, 2),
        **{name: row[name] for name in kept},
        "last_sqnr_db": row["blocks"][-1]["sqnr_db"],
    }


def main() -> None:
    """Measure both fidelities one after the other, and their ratio."""
    model = sys.argv[1] if len(sys.argv) > 1 else "kimi-k2"
    rows = [run(model, fidelity) for fidelity in FIDELITIES]
    fast_s, faithful_s = (row["wall_s"] for row in rows)
    times = {"cores": os.cpu_count(), "faithful_times_fast": round(faithful_s / fast_s, 2)}
    record("forward", [*rows, times])


if __name__ == "__main__":
    main()
