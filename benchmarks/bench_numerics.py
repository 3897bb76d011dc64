"""Exact products, conversions and block quantisation, as ratios of one run.

Timed: compiled calls with operands in memory, in turns, the minimum of the repeats. Says nothing
about the speed of a real chip. Run with `python benchmarks/bench_numerics.py [--only SECTION]`; for
one core prepend `XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0`.

- `matmul`: the exact product against a plain float32 `jnp.dot` with float32 operands, and against
  the same K tiles in float32: `tiled` reads tiles in place as the exact product does,
  `tiled_scan` copies them into a leading axis and scans, as one would write it first.
- `data`: the same for data that the certificate decides less often.
- `chips`: 256 virtual chips against one chip with as much work.
- `engines`: float64 and int8 residues against the native product of fp16 operands in fp32.
- `codecs`: elements a second, beside a pass that adds 1.
- `blocks`: block quantisation against NumPy as one would write it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from record import record
from timing import ratios, shortest_s

from lpu_jax.datapath import mxm
from lpu_jax.numerics import accumulate, rounding
from lpu_jax.numerics.formats import FORMATS
from lpu_jax.numerics.quantized import quantize
from lpu_jax.numerics.schemes import MXFP4, MXFP8_E4M3

K_TILE = 160
SHAPES = ((64, 4096, 4096), (1, 4096, 4096), (256, 4096, 1024))
CODECS = ("e4m3fn", "e5m2", "e4m3", "e3m4", "e3m2", "e2m3", "e2m1", "fp16", "bf16")
N_VALUES = 1 << 22


def operands(m: int, k: int, n: int, kind: str = "ordinary") -> tuple[jax.Array, jax.Array]:
    """Make activations and weights in fp16."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(m, k)), rng.normal(size=(k, n)) / np.sqrt(k)
    match kind:
        case "outliers":  # 1% of channels a hundred times larger
            x = x * np.where(rng.random(k) < 0.01, 100, 1)
        case "large":
            x, w = x * 100, rng.normal(size=(k, n)) * 10
        case "log-uniform":
            x, w = (np.exp2(rng.uniform(-24, 15.9, v.shape)) for v in (x, w))
    return jnp.asarray(x, jnp.float16), jnp.asarray(w, jnp.float16)


@jax.jit
def tiled(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply the K tiles in float32, reading them in place."""
    (m, k), n = x.shape, w.shape[1]

    def add(total: jax.Array, start: Any, rows: int) -> jax.Array:
        x_rows = lax.dynamic_slice(x, (0, start), (m, rows)).astype(jnp.float32)
        w_rows = lax.dynamic_slice(w, (start, 0), (rows, n)).astype(jnp.float32)
        return total + jnp.dot(x_rows, w_rows)

    whole = k // K_TILE
    total = lax.fori_loop(
        0, whole, lambda i, t: add(t, i * K_TILE, K_TILE), jnp.zeros((m, n), jnp.float32)
    )
    return add(total, whole * K_TILE, k % K_TILE) if k % K_TILE else total


@jax.jit
def tiled_scan(x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiply the K tiles in float32, cut out before a scan."""
    (m, k), n = x.shape, w.shape[1]
    x = jnp.pad(x, ((0, 0), (0, -k % K_TILE))).reshape(m, -1, K_TILE).transpose(1, 0, 2)
    w = jnp.pad(w, ((0, -k % K_TILE), (0, 0))).reshape(-1, K_TILE, n)

    def add(total: jax.Array, tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + jnp.dot(*(v.astype(jnp.float32) for v in tile)), None

    return lax.scan(add, jnp.zeros((m, n), jnp.float32), (x, w))[0]


def bench_matmul() -> list[dict[str, Any]]:
    dot, exact = jax.jit(jnp.dot), jax.jit(mxm.matmul)
    carried, truncated = (
        jax.jit(partial(mxm.matmul, **choice))
        for choice in ({"carry": "exact"}, {"rounding": "rz"})
    )
    rows = []
    for m, k, n in SHAPES:
        x, w = operands(m, k, n)
        x32, w32 = x.astype(jnp.float32), w.astype(jnp.float32)
        rng = np.random.default_rng(1)
        x8, w8 = (jnp.asarray(rng.integers(-127, 128, s), jnp.int8) for s in ((m, k), (k, n)))
        xf, wf = x.astype(jnp.float8_e4m3fn), w.astype(jnp.float8_e4m3fn)
        calls: dict[str, Callable[[], Any]] = {
            "dot": partial(dot, x32, w32),
            "tiled": partial(tiled, x, w),
            "tiled_scan": partial(tiled_scan, x, w),
            "exact": partial(exact, x, w),
            "exact_rz": partial(truncated, x, w),
            "exact_carry": partial(carried, x, w),
            "int8": partial(exact, x8, w8),
            "e4m3fn": partial(exact, xf, wf),
        }
        rows.append({"shape": [m, k, n], **ratios(calls, "dot")})
    return rows


def bench_data() -> list[dict[str, Any]]:
    dot, exact = jax.jit(jnp.dot), jax.jit(mxm.matmul)
    rows = []
    for kind in ("ordinary", "outliers", "large", "log-uniform"):
        x, w = operands(*SHAPES[0], kind)
        x32, w32 = x.astype(jnp.float32), w.astype(jnp.float32)
        calls = {"dot": partial(dot, x32, w32), "exact": partial(exact, x, w)}
        rows.append({"data": kind, **ratios(calls, "dot")})
    return rows


def bench_chips() -> dict[str, Any]:
    n_chips, k, n = 256, 7168, 64
    x, w = operands(1, k, n_chips * n)
    shards = jnp.asarray(np.moveaxis(np.asarray(w).reshape(k, n_chips, n), 1, 0))
    one, many = jax.jit(mxm.matmul), jax.jit(jax.vmap(mxm.matmul, in_axes=(None, 0)))
    assert np.array_equal(one(x, w), np.asarray(many(x, shards)).reshape(1, -1))
    calls = {"one_chip": partial(one, x, w), "chips": partial(many, x, shards)}
    return {"shape": [n_chips, 1, k, n], **ratios(calls, "one_chip", repeats=5)}


def bench_engines() -> list[dict[str, Any]]:
    def product(x: jax.Array, w: jax.Array, **choices: Any) -> jax.Array:
        with jax.enable_x64(True):
            return accumulate.matmul(x, w, **choices)

    def native(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.dot(x, w, preferred_element_type=jnp.float32)

    rows = []
    for k_tile in (160, 320):
        for kind in ("ordinary", "log-uniform"):
            x, w = operands(*SHAPES[0], kind)
            calls: dict[str, Callable[[], Any]] = {"native_fp16": partial(jax.jit(native), x, w)}
            for engine in get_args(accumulate.Engine):
                call = jax.jit(partial(product, k_tile=k_tile, engine=engine))
                calls[engine] = partial(call, x, w)
            assert np.array_equal(calls["float64"](), calls["int8"]())
            row = ratios(calls, "native_fp16", repeats=3)
            rows.append({"k_tile": k_tile, "data": kind, **row})
    return rows


def bench_codecs() -> dict[str, Any]:
    bits = np.random.default_rng(2).normal(size=N_VALUES).astype(np.float32)
    x = jnp.asarray(bits)
    calls: dict[str, Callable[[], Any]] = {"add_one": partial(jax.jit(lambda v: v + 1), x)}
    for name in CODECS:
        fmt = FORMATS[name]
        encode = jax.jit(partial(rounding.encode, fmt=fmt))
        calls[f"encode {name}"] = partial(encode, x)
        calls[f"decode {name}"] = partial(jax.jit(partial(rounding.decode, fmt=fmt)), encode(x))
    best = shortest_s(calls)
    return {name: {"elements_per_s": round(N_VALUES / s, -6)} for name, s in best.items()}


def numpy_mx(
    x: np.ndarray, axis: int, largest_exponent: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Quantise blocks of 32 along an axis of a matrix as one would write it in NumPy."""
    m, n = x.shape
    blocks = x.reshape(m, -1, 32) if axis == -1 else x.reshape(-1, 32, n)
    amax = np.abs(blocks).max(-1 if axis == -1 else 1, keepdims=True)
    exponent = np.floor(np.log2(amax)) - largest_exponent
    return (blocks / np.exp2(exponent)).astype(dtype), (exponent + 127).astype(np.uint8)


def bench_blocks() -> list[dict[str, Any]]:
    x = np.random.default_rng(3).normal(size=(1024, 4096)).astype(np.float32)
    on_device = jnp.asarray(x)
    rows = []
    for scheme, largest_exponent, dtype in (
        (MXFP8_E4M3, 8, ml_dtypes.float8_e4m3fn),
        (MXFP4, 2, ml_dtypes.float4_e2m1fn),
    ):
        for axis in (-1, -2):
            call = jax.jit(partial(quantize, scheme=scheme, axis=axis))
            best = shortest_s(
                {
                    "numpy": partial(numpy_mx, x, axis, largest_exponent, dtype),
                    "quantize": partial(call, on_device),
                }
            )
            rows.append(
                {
                    "scheme": scheme.name,
                    "axis": axis,
                    "elements_per_s": {n: round(x.size / s, -6) for n, s in best.items()},
                    "times_faster_than_numpy": round(best["numpy"] / best["quantize"], 1),
                }
            )
    return rows


SECTIONS: dict[str, Callable[[], Any]] = {
    "matmul": bench_matmul,
    "data": bench_data,
    "chips": bench_chips,
    "engines": bench_engines,
    "codecs": bench_codecs,
    "blocks": bench_blocks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, help="run one section and record nothing")
    only = parser.parse_args().only
    if only:
        print(SECTIONS[only]())
        return
    record("numerics", {name: section() for name, section in SECTIONS.items()})


if __name__ == "__main__":
    main()
