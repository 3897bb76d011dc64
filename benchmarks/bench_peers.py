"""How many plans a second, beside two planners of the package index: aiconfigurator-core, genz-llm.

Each runs in an environment of its own under `build/peers`, made on the first run, and takes turns
with this program on one core. A row is a plan whose decode step is timed; the peers decide about
a plan by timing it, this program also by bounds: both rates are given. Plans and machines are
each program's own; only rates are compared, not times. Run with `python benchmarks/bench_peers.py`
(Linux).
"""

import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from record import record
from worker import Worker, pin_to_one_core

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "build" / "peers"
ROUNDS = 3


def environment(requirement: str) -> Path | None:
    """Make an environment with a package; return its interpreter, or None without the package."""
    folder = ENVIRONMENTS / requirement
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    if subprocess.run([*pip, requirement], check=False).returncode:
        return None
    (folder / "installed").touch()
    return python


def shortest(rounds: Sequence[dict[str, Any]]) -> float:
    """Fewest seconds of some rounds."""
    seconds: list[float] = [done["seconds"] for done in rounds]
    return min(seconds)


def in_turns(
    ways: Mapping[str, Worker], question: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Time the ways of a peer and this program in turns.

    Returns:
        Rows a second of each way; plans and rates of this program.
    """
    rounds: dict[str, list[dict[str, Any]]] = {}
    with Worker("search_now.py", root=ROOT) as ours:
        n_plans = ours("list_plans", question, "listed")["result"]
        own_jobs: dict[str, tuple[Any, ...]] = {
            "evaluate": ("evaluate_plans", question, "listed"),
            "search": ("search", question, 1, 2),
        }
        for name in own_jobs:
            ours(*own_jobs[name])  # warm
        for turn in range(ROUNDS):
            for name, peer in ways.items():
                rounds.setdefault(name, []).append(peer(name, turn))
            for name, job in own_jobs.items():
                rounds.setdefault(name, []).append(ours(*job))
    rows = {name: rounds[name][0]["result"] / shortest(rounds[name]) for name in ways}
    searched, search_s = rounds["search"][0]["result"], shortest(rounds["search"])
    own = {
        "question": question,
        "plans_evaluated": n_plans,
        "rows_per_s": round(n_plans / shortest(rounds["evaluate"])),
        "plans_of_the_space": searched["plans"],
        "plans_compared": searched["plans_compared"],
        "plans_decided_per_s": float(f"{searched['plans'] / search_s:.3g}"),
    }
    return rows, own


def beside(
    requirement: str, script: str, ways: Sequence[str], question: Sequence[str]
) -> dict[str, Any]:
    """Compare with a peer; say so if there is none."""
    python = environment(requirement)
    if python is None:
        return {"peer": requirement, "skipped": "pip could not install it"}
    with ExitStack() as stack:
        root = Path(__file__).parent
        peers = {way: Worker(script, python=python, root=root) for way in ways}
        for way, peer in peers.items():
            stack.enter_context(peer)("prepare", way)
        rows, own = in_turns(peers, question)
    return {
        "peer": requirement,
        "ours": own,
        "ways": [
            {
                "way": name,
                "rows_per_s": round(rate, 2),
                "our_rows_times": round(own["rows_per_s"] / rate, 1),
                "our_decided_times": float(f"{own['plans_decided_per_s'] / rate:.3g}"),
            }
            for name, rate in rows.items()
        ],
    }


def main() -> None:
    pin_to_one_core()
    load = [os.getloadavg()[0]]
    peers = [
        beside(
            "aiconfigurator-core==0.12.0",
            "peer_aiconfigurator.py",
            ("compiled", "compiled_beside", "op_lists"),
            ("kimi-k2", "lpx-9", "int4"),
        ),
        beside(
            "genz-llm==0.0.16",
            "peer_genz.py",
            ("decode_moddeling",),
            ("llama-3.1-70b", "groq-576", "int8"),
        ),
    ]
    load.append(os.getloadavg()[0])
    record("peers", {"load": [round(x, 1) for x in load], "peers": peers})


if __name__ == "__main__":
    main()
