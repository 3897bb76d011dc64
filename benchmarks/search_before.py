"""Jobs of `bench_search` at the commit before the search became branch and bound."""

import json
import time
from pathlib import Path
from typing import Any

from worker import serve

import sharding.rank.compare as ranking
from sharding.legal import Search
from sharding.request import Request
from sharding.scenario import scenario

REQUEST = Request(context=8192)
_spent: dict[str, float] = {}


def _measure(name: str) -> None:
    """Add up the seconds of a function of `compare`."""
    function = getattr(ranking, name)

    def measured(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            _spent[name] = _spent.get(name, 0.0) + time.process_time() - start

    setattr(ranking, name, measured)


def compare() -> dict[str, float]:
    """Compare; say what listing, evaluating and ranking the plans took, and evaluating alone."""
    _spent.clear()
    found = ranking.compare("kimi-k2", "lpx-9", REQUEST, policy="int4")
    return {
        "plans": found.legal,
        "search_s": _spent["search_plans"] + _spent["rank"],
        "evaluate_s": _spent["evaluate"],
    }


def write_plans(path: str) -> int:
    """Write the plans that are evaluated to a file; return how many."""
    plans = list(Search(scenario("kimi-k2", "lpx-9", REQUEST, policy="int4")).plans())
    Path(path).write_text(json.dumps([plan.as_dict() for plan in plans]), encoding="utf-8")
    return len(plans)


if __name__ == "__main__":
    for part in ("search_plans", "rank", "evaluate"):
        _measure(part)
    serve((compare, write_plans))
