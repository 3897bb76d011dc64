"""A small mixed machine, and plans for it that are written out."""

from dataclasses import replace
from typing import Any

from lpu_jax.machine.built_topologies import LpxTopology
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQ3_LPU
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.pool_link import PoolLink
from lpu_jax.machine.system import System
from models.config import ModelConfig
from models.policy import POLICIES
from models.zoo import model
from sharding.request import Request
from sharding.scenario import Scenario

#: Sums of the same terms in other orders.
CLOSE = 1e-11
#: The slowest stage is found to one part in 10^9.
CUT = 2e-9
#: On GPUs and LPUs; their numbers of layers suit a machine of four GPUs and sixteen LPUs.
PLANS = (
    "1x1 a:1 + 1x1 f:1",
    "1x2 a:2r + 2x3 f:3t column",
    "2x2 a:2t v:2t + 1x4 f:4t row",
    "4x1 a:1 + 3x2 f:2t row",
    "3x1 a:1 + 1x9 f:9t row",
    "1x4 a:2t·2r v:4t + 2x8 f:8t row",
)


def tray(n_chips: int, host_overhead_s: float = 0.0) -> System:
    """LPUs in one tray, any two of them linked."""
    return System(
        name="tray",
        chip=GROQ3_LPU,
        topology=LpxTopology(n_chips=n_chips),
        n_chips=n_chips,
        host_overhead_s=host_overhead_s,
    )


def mixed_of(link: PoolLink | None = None, **numbers: Any) -> MixedSystem:
    """Four H100 beside sixteen LPUs; hosts of both take time, the GPUs' has the head."""
    gpus = replace(system("h100x4"), host_overhead_s=numbers.pop("host_s", 5e-6))
    return MixedSystem(
        name="small",
        gpus=gpus,
        lpus=tray(16, host_overhead_s=9e-6),
        link=replace(link or PoolLink(), **numbers),
    )


def asked_of(
    machine: MixedSystem, cfg: ModelConfig | None = None, policy: str = "fp16", **request: Any
) -> Scenario:
    asked = Request(**({"batch": 2, "context": 256} | request))
    cfg = cfg or replace(model("smollm2-135m"), n_layers=3)
    return Scenario(cfg, machine.lpus, asked, policy=POLICIES[policy]).on(machine)


def short_of_memory(machine: MixedSystem, n_bytes: int) -> MixedSystem:
    """The same with so much memory in a GPU, no reserve."""
    chip = replace(machine.gpus.chip, memory_bytes=n_bytes, reserved_fraction=0.1)
    return replace(machine, gpus=replace(machine.gpus, chip=chip))
