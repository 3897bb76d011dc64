"""The same bits under other compiler options: each in a process of its own, compared by hashes."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib
import jax, jax.numpy as jnp, numpy as np
from lpu_jax.datapath import mxm, vxm
from lpu_jax.numerics import elementary

rng = np.random.default_rng(0)
x, y, gain = (jnp.asarray(rng.normal(size=(4, 333)), jnp.float32) for _ in range(3))
w = jnp.asarray(rng.normal(size=(333, 64)), jnp.float16)

def chain(x, y, gain):
    h = vxm.add(vxm.mul(x, y), gain)
    h = vxm.mul(vxm.mul(h, 0.1), 3.3)
    h = vxm.add(vxm.add(h, 1e3), -1e3)
    h = vxm.div(vxm.div(h, 3.0), y)
    steps = vxm.to_fp32(vxm.to_int8(vxm.mul(x, 40.0)))
    h = vxm.add(vxm.mul(steps, -2.12194440e-4), h)
    h = vxm.mul(h, vxm.rsqrt(vxm.add(vxm.sum_lanes(vxm.mul(h, h)), 1e-5)))
    return vxm.fma(vxm.softmax(h), gain, vxm.silu(vxm.mul(h, 4.0)))

def program(x, y, gain, w):
    functions = ("exp", "log", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "rsqrt", "sqrt",
                 "reciprocal")
    single = [getattr(vxm, name)(jnp.abs(x) if name == "log" else 8 * x) for name in functions]
    pairs = [f(x, y) for f in (vxm.add, vxm.sub, vxm.mul, vxm.div, vxm.maximum)]
    h = chain(x, y, gain)
    product = mxm.matmul(vxm.to_fp16(h), w)
    return [*single, *pairs, vxm.fma(x, y, gain), vxm.softmax(x), h, product]

out = jax.jit(program)(x, y, gain, w)
# NaN is hashed too: all are one NaN.
print(hashlib.sha256(b"".join(np.asarray(o).tobytes() for o in out)).hexdigest())
"""

FLAGS = (
    "",
    "--xla_cpu_max_isa=AVX",
    "--xla_disable_hlo_passes=algsimp",
    "--xla_backend_optimization_level=0",
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the options are those of one platform")
def test_no_compiler_option_moves_a_bit() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    hashes = {}
    for flags in FLAGS:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**environment, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        hashes[flags] = done.stdout
    assert len(set(hashes.values())) == 1, hashes
