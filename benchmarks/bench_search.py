"""How fast the search is, beside the commit before it became branch and bound.

Both commits take turns on one core, each in a process of its own; figures are the shortest of
`ROUNDS`. A search lists, evaluates and ranks plans; a comparison also explains ten of them. The
old search evaluated every plan of its space, all of one pool; `covers` divides their number by the
seconds of the new one, whose space holds them all. Run with `python benchmarks/bench_search.py`
(Linux).
"""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import record
from worker import Worker, pin_to_one_core

ROOT = Path(__file__).parents[1]
BEFORE = "92df7a5"
QUESTION = ("kimi-k2", "lpx-9", "int4")
ROUNDS = 3
#: The ten rows that a comparison shows, and the best plan alone; the old space had one pool.
SEARCHES = ((10, 2), (1, 2), (10, 1), (1, 1))
#: Of the old search's plans that are evaluated in every round, one in so many.
EVERY = 4
Rounds = dict[str, list[dict[str, Any]]]


def check_out(commit: str, folder: Path) -> None:
    """Check a commit of this repository out."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)


def in_turns(before: Path, plans: str) -> tuple[Rounds, int, int]:
    """Do each job of both commits once a round.

    Returns:
        What each job took; how many plans the old search evaluates, and how many of them the new
        `evaluate` does.
    """
    done: Rounds = {}
    with (
        Worker("search_before.py", root=before) as old,
        Worker("search_now.py", root=ROOT) as new,
    ):
        n_listed: int = old("write_plans", plans)["result"]
        assert new("take_plans", plans, 1, "all")["result"] == n_listed
        n_some: int = new("take_plans", plans, EVERY, "some")["result"]
        jobs: dict[str, tuple[Worker, tuple[Any, ...]]] = {
            "compare_before": (old, ("compare",)),
            "compare": (new, ("compare", QUESTION)),
            **{name(*one): (new, ("search", QUESTION, *one)) for one in SEARCHES},
            "evaluate": (new, ("evaluate_plans", QUESTION, "some")),
        }
        best = new("evaluate_plans", QUESTION, "all")["result"]
        for worker, job in jobs.values():
            if worker is new:
                worker(*job)  # warm
        for _ in range(ROUNDS):
            for label, (worker, job) in jobs.items():
                done.setdefault(label, []).append(worker(*job))
            with Worker("search_now.py", root=ROOT) as fresh:
                done.setdefault("search_cold", []).append(fresh("search", QUESTION, *SEARCHES[0]))
        for one in SEARCHES:  # no plan of the old search beats the best of the new one
            assert done[name(*one)][0]["result"]["best_cycles"] <= best
    return done, n_listed, n_some


def name(top: int, most_pools: int) -> str:
    """What a search is called."""
    return f"search_{top}_of_{most_pools}"


def shortest(rounds: Sequence[dict[str, Any]]) -> float:
    """Fewest seconds of some rounds."""
    seconds: list[float] = [done["seconds"] for done in rounds]
    return min(seconds)


def result(done: Rounds, n_listed: int, n_some: int) -> dict[str, Any]:
    """Put both commits side by side."""
    best = {name: shortest(rounds) for name, rounds in done.items()}
    parts = [took["result"] for took in done["compare_before"]]
    n_plans = parts[0]["plans"]
    search_s = min(part["search_s"] for part in parts)
    evaluate_s = min(part["evaluate_s"] for part in parts)
    return {
        "before": {
            "commit": BEFORE,
            "plans": n_plans,
            "plans_listed": n_listed,
            "compare_s": round(best["compare_before"], 2),
            "search_s": round(search_s, 2),
            "plans_per_s_of_compare": round(n_plans / best["compare_before"]),
            "plans_per_s_of_search": round(n_plans / search_s),
            "rows_per_s_of_evaluate": round(n_listed / evaluate_s),
        },
        "compare": {
            "s": round(best["compare"], 2),
            "times_compare_before": round(best["compare"] / best["compare_before"], 3),
        },
        "searches": [
            {
                "rows": top,
                "most_pools": pools,
                "warm_s": round(best[name(top, pools)], 2),
                **(
                    {"cold_s": round(best["search_cold"], 2)} if (top, pools) == SEARCHES[0] else {}
                ),
                **done[name(top, pools)][0]["result"],
                "covers_per_s": round(n_plans / best[name(top, pools)]),
                "covers_times_search_before": round(search_s / best[name(top, pools)], 1),
                "covers_times_compare_before": round(
                    best["compare_before"] / best[name(top, pools)], 1
                ),
            }
            for top, pools in SEARCHES
        ],
        "evaluate": {
            "rows": n_some,
            "rows_per_s": round(n_some / best["evaluate"]),
            "rows_per_s_times_before": round(
                n_some / best["evaluate"] / (n_listed / evaluate_s), 2
            ),
        },
    }


def sweep(compare_before_s: float, most_pools: int) -> dict[str, Any]:
    """Search for every batch and policy in a fresh process; nothing is traced before."""
    with Worker("search_now.py", root=ROOT) as fresh:
        done = fresh("sweep", *QUESTION[:2], most_pools)
    return {
        "most_pools": most_pools,
        **done["result"],
        "s": round(done["seconds"], 2),
        "times_compare_before": round(done["seconds"] / compare_before_s, 2),
        "peak_gb": round(done["peak_bytes"] / 1e9, 3),
    }


def main() -> None:
    pin_to_one_core()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before"
        check_out(BEFORE, before)
        done, n_listed, n_some = in_turns(before, str(Path(scratch) / "plans.json"))
    found = result(done, n_listed, n_some)
    found["sweeps"] = [sweep(shortest(done["compare_before"]), pools) for pools in (1, 2)]
    load.append(os.getloadavg()[0])
    record("search", {"question": QUESTION, "load": [round(x, 1) for x in load], **found})


if __name__ == "__main__":
    main()
