"""Sums by the rules of tensor cores against the exact product of the same fp16 operands.

Timed: compiled calls with operands in memory, in turns, the shortest work of all threads (CPU time,
so that other processes count little). Says nothing about the speed of a real chip. Run with
`python benchmarks/bench_tensor_cores.py`; for one core prepend
`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0`.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from bench_numerics import SHAPES, operands
from record import record
from timing import ratios

from lpu_jax.datapath import mxm, tensor_core
from lpu_jax.numerics.quantized import quantize
from lpu_jax.numerics.schemes import MXFP8_E4M3, NVFP4


def measured() -> dict[str, Any]:
    """Multiply matrices of each kind, rows by columns of one shape."""
    x, w = operands(*SHAPES[0])
    calls: dict[str, Callable[[], Any]] = {"exact": partial(jax.jit(mxm.matmul), x, w)}
    for generation, dtype in (
        ("hopper", jnp.float16),
        ("hopper", jnp.bfloat16),
        ("hopper", jnp.float8_e4m3fn),
        ("blackwell", jnp.float8_e4m3fn),
    ):
        call = jax.jit(partial(tensor_core.matmul, generation=generation))
        given = (x.astype(dtype), (w * 64).astype(dtype))
        calls[f"{generation} {jnp.dtype(dtype).name}"] = partial(call, *given)
    for scheme in (MXFP8_E4M3, NVFP4):
        call = jax.jit(partial(tensor_core.matmul, generation="blackwell"))
        given = (quantize(v.astype(jnp.float32), scheme, axis) for v, axis in ((x, -1), (w, -2)))
        calls[f"blackwell {scheme.name}"] = partial(call, *given)
    return {"shape": SHAPES[0], **ratios(calls, "exact", clock=time.process_time)}


if __name__ == "__main__":
    record("tensor_cores", measured())
