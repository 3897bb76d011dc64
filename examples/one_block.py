"""One transformer block on eight chips, read three ways: values, what a chip holds, time."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from lpu_jax.cost import time
from lpu_jax.machine.catalogue import system
from lpu_jax.mesh import ChipMesh, run_virtual
from lpu_jax.quantities import format_bytes
from models import zoo
from models.layers.linear import Split
from models.layers.mlp import dense_mlp
from models.policy import FP16
from models.weights.synthetic import SyntheticWeights

N_CHIPS, machine = 8, system("groq-node")
chip, topology = machine.chip, machine.topology
cfg = zoo.model("smollm2-135m")
stored = SyntheticWeights(cfg).block("dense", layer=0)
weights = {n: jnp.asarray(w, "float16" if w.ndim > 1 else "float32") for n, w in stored.items()}
x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, cfg.d_model)), jnp.float16)

# The program of one chip, written once. The plan: columns of the hidden layer over all chips.
mesh, single = (ChipMesh(axes=(("tensor", n),), topology=topology) for n in (N_CHIPS, 1))
shards = {"norm": P(), "gate_up": P(None, None, "tensor")}


def program(split: Split) -> tuple:
    down = P(None, "tensor") if split is Split.COLUMN else P("tensor", None)
    return partial(dense_mlp, cfg=cfg, policy=FP16, split=split), (P(), shards | {"down": down})


def main() -> None:
    print(f"Values: the dense block of {cfg.name}, bit for bit as the chips would round")
    one_chip, specs = program(Split.COLUMN)
    alone = jax.jit(run_virtual(one_chip, single, specs, P()))(x, weights)
    for split in Split:
        block, specs = program(split)
        out = jax.jit(run_virtual(block, mesh, specs, P()))(x, weights)
        bits = hashlib.sha256(np.asarray(out).tobytes()).hexdigest()[:12]
        same = np.mean(np.asarray(out) == np.asarray(alone))
        print(f"  {split:6} split over {N_CHIPS} chips: bits {bits}, {same:.1%} as on one chip")

    print("\nPlacement: what one chip holds")
    share = {n: w.nbytes / (1 if n == "norm" else N_CHIPS) for n, w in weights.items()}
    for name, n_bytes in (share | {"all": sum(share.values())}).items():
        print(f"  {name:8} {format_bytes(n_bytes):>9}  {n_bytes / chip.sram_bytes:.3%} of its SRAM")

    print("\nTime: when each operation runs")
    block, specs = program(Split.ROW)
    print(time(block, x, weights, system=machine, mesh=mesh, in_specs=specs, out_specs=P()).table())


if __name__ == "__main__":
    main()
