"""How many plans a second the search evaluates, time and memory, without any tensor value.

Timed: `sharding.rank.compare` in one process, cold (imports done, nothing traced) and warm (blocks
traced). Run with `python benchmarks/bench_search.py`.
"""

import time

from record import record

from sharding.rank.compare import compare
from sharding.request import Request

CASES = (
    ("kimi-k2", "lpx-9", "int4", 8192),
    ("deepseek-v3", "lpx-9", "fp8", 8192),
    ("llama-2-70b", "groq-576", "int8", 4096),
)


def main() -> None:
    rows = []
    for model, system, policy, context in CASES:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            found = compare(model, system, Request(context=context), policy=policy)
            times.append(time.perf_counter() - start)
        rows.append(
            {
                "model": model,
                "system": system,
                "plans": found.legal,
                "cold_s": round(times[0], 2),
                "warm_s": round(min(times[1:]), 2),
                "plans_per_s_warm": round(found.legal / min(times[1:])),
            }
        )
    record("search", rows)


if __name__ == "__main__":
    main()
