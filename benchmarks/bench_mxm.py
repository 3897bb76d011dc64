"""Exact MXM products against a plain float32 `jnp.dot` of the same shape, as ratios of one run.

Timed: the compiled call with operands in memory, interleaved, the minimum of the repeats. The dot
reads float32 operands; the exact product reads float16 and makes its certificate on the fly. Says
nothing about the speed of a real chip. Run with `python benchmarks/bench_mxm.py`; for one core
prepend `XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0`.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from record import record

from lpu_jax.datapath import mxm

SHAPES = ((1, 4096, 4096), (64, 4096, 4096), (256, 4096, 1024))
REPEATS = 7


def seconds(calls: dict[str, Callable[[], jax.Array]]) -> dict[str, float]:
    """Shortest time of each call; the calls take turns, so that a slow moment touches all."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(REPEATS + 1):  # the first round compiles
        for name, call in calls.items():
            start = time.perf_counter()
            call().block_until_ready()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for m, k, n in SHAPES:
        x = jnp.asarray(rng.normal(size=(m, k)), jnp.float16)
        w = jnp.asarray(rng.normal(size=(k, n)) / np.sqrt(k), jnp.float16)
        x32, w32 = x.astype(jnp.float32), w.astype(jnp.float32)
        exact, plain = jax.jit(mxm.matmul), jax.jit(jnp.dot)
        best = seconds(
            {
                "exact": lambda e=exact, x=x, w=w: e(x, w),
                "dot": lambda p=plain, x=x32, w=w32: p(x, w),
            }
        )
        rows.append(
            {
                "shape": [m, k, n],
                "exact_ms": round(1e3 * best["exact"], 2),
                "float32_dot_ms": round(1e3 * best["dot"], 2),
                "ratio": round(best["exact"] / best["dot"], 2),
            }
        )
    record("mxm", rows)


if __name__ == "__main__":
    main()
