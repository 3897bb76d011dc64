"""Small scenarios at random: models of every shape, machines of every wiring, requests, memories.

Nothing is allocated, so that widths may be those of real models: splits then pay off.
"""

from dataclasses import replace
from random import Random

import numpy as np
from brute_force import EveryPlan
from placed_blocks import TINY_KIMI, TINY_LLAMA, TINY_OSS

from lpu_jax.errors import PlanError
from lpu_jax.machine.built_topologies import LpxTopology
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.chip import ChipSpec
from lpu_jax.machine.custom_topology import LevelSpec, custom_topology
from lpu_jax.machine.gpu import GpuSpec
from lpu_jax.machine.lpu_chips import GROQ3_LPU
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.pool_link import PoolLink
from lpu_jax.machine.system import System
from lpu_jax.machine.topology import Topology
from models.blocks import BLOCK_KINDS, block_chain
from models.config import GqaConfig, MlaConfig, ModelConfig, MoeConfig
from models.policy import POLICIES
from sharding.plan import FFN_PARTS, AttentionShard, MlpShard, MoeShard, Plan, Pool
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario

_HEAD_DIM = 32


def random_model(rng: Random) -> ModelConfig:
    """A model with grouped or latent attention, dense or of experts, of one to three layers.

    Where it has experts, these hold most of its weights.
    """
    n_layers, d_model = rng.choice([1, 1, 2, 3]), rng.choice([96, 640, 2048])
    cfg = replace(
        TINY_LLAMA,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=rng.choice([3, 160, 700, 4096, 14336]),
        vocab_size=rng.choice([5, 130, 4000, 32000]),
        attention=_grouped(rng),
    )
    match rng.choice(["dense", "dense", "sliding", "experts", "experts", "latent", "offset"]):
        case "sliding":
            attention = replace(_grouped(rng), window=rng.choice([100, 400]))
            layers = tuple(i for i in range(n_layers) if rng.random() < 0.5)
            return replace(cfg, attention=attention, sliding_layers=layers)
        case "experts":
            return _with_experts(rng, cfg)
        case "latent":
            cfg = replace(cfg, attention=_latent(rng), rope=TINY_KIMI.rope)
            return _with_experts(rng, cfg) if rng.random() < 0.5 else cfg
        case "offset":
            assert TINY_OSS.moe is not None
            n_experts, width = rng.choice([4, 7]), rng.choice([64, 2880])
            moe = replace(TINY_OSS.moe, n_experts=n_experts, top_k=2, d_expert=width)
            return replace(cfg, attention=replace(_grouped(rng), sinks=True), moe=moe)
    return cfg


def _with_experts(rng: Random, cfg: ModelConfig) -> ModelConfig:
    moe = MoeConfig(
        n_experts=rng.choice([3, 4, 6]),
        top_k=rng.choice([1, 2, 3]),
        n_shared=rng.choice([0, 0, 1]),
        d_expert=rng.choice([64, 1024, 4096]),
        n_dense_layers=rng.choice([0, cfg.n_layers - 1]),
    )
    return replace(cfg, moe=moe, d_ff=rng.choice([3, 64]))


def _grouped(rng: Random) -> GqaConfig:
    n_kv_heads = rng.choice([1, 2, 3, 5])
    n_heads = n_kv_heads * rng.choice([1, 2, 3, 4])
    return GqaConfig(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=_HEAD_DIM)


def _latent(rng: Random) -> MlaConfig:
    assert isinstance(TINY_KIMI.attention, MlaConfig)
    return replace(
        TINY_KIMI.attention,
        n_heads=rng.choice([3, 4, 6]),
        q_lora_rank=rng.choice([64, 512]),
        form=rng.choice(["absorbed", "expanded"]),
    )


def random_system(rng: Random) -> System:
    """A machine of a few chips, or some of the chips of a larger one, some with a slow host."""
    return replace(_chips(rng), host_overhead_s=rng.choice([0.0, 0.0, 2e-6]))


def _chips(rng: Random) -> System:
    match rng.choice(["node", "groq", "part", "lpx", "small lpx", "custom", "custom", "gpus"]):
        case "node":
            return system(f"groq-{rng.randint(1, 8)}")
        case "groq":
            return system(f"groq-{rng.randint(9, 18)}")
        case "part":
            whole = rng.choice(["groq-12", "groq-17", "groq-rack", "lpx-1", "lpx-2"])
            return replace(system(whole), n_chips=rng.randint(2, 12))
        case "lpx":
            return of_lpus(LpxTopology(n_chips=rng.randint(3, 16)))
        case "small lpx":
            tray = rng.choice([1, 2, 3])
            racks = LpxTopology(
                n_chips=rng.randint(3, 14),
                tray_chips=tray,
                half_rack_chips=2 * tray,
                rack_chips=rng.choice([2, 4]) * tray,
                rack_chain=rng.choice(["line", "ring"]),
            )
            return of_lpus(racks)
        case "custom":
            return of_lpus(random_topology(rng, 14))
        case _:
            return system(rng.choice(["h100x2", "h100x4", "h100x6", "gb200x8"]))


def random_mixed(rng: Random, most_lpus: int = 6) -> MixedSystem:
    """A few GPUs beside a few LPUs, whose network may be the slowest of all or the fastest."""
    while True:
        lpus = _chips(rng)
        gpus = system(rng.choice(["h100x1", "h100x2", "h100x3", "h100x4", "gb200x2"]))
        hosts = [rng.choice([0.0, 0.0, 2e-6, 7e-6]) for _ in range(2)]
        if lpus.lpus is None:
            continue
        n_lpus = min(lpus.n_chips, rng.randint(1, most_lpus))
        try:
            return MixedSystem(
                name="random",
                gpus=replace(gpus, host_overhead_s=hosts[0]),
                lpus=replace(lpus, n_chips=n_lpus, host_overhead_s=hosts[1]),
                link=random_link(rng),
            )
        except PlanError:
            continue  # no lane is left


def random_link(rng: Random) -> PoolLink:
    """A network whose lanes, ports and latency are in no order."""
    return replace(
        PoolLink(),
        lpu_lanes=rng.choice([1, 1, 2]),
        lane_bytes_per_s=rng.choice([1e8, 1e9, 12.5e9, 12.5e9, 1e12]),
        fpga_lpus=rng.choice([1, 2, 3, 8]),
        fpga_port_bytes_per_s=rng.choice([1e9, 50e9, 100e9, 1e12]),
        gpu_port_bytes_per_s=rng.choice([1e9, 50e9, 200e9, 1e12]),
        efficiency=rng.choice([0.76, 0.95]),
        latency_s=rng.choice([1e-9, 3e-7, 3e-6, 3e-5]),
        wire_format=rng.choice(["fp8", "fp16", "fp32"]),
    )


def random_topology(rng: Random, most_chips: int) -> Topology:
    """A machine of up to three levels whose rates and latencies are in no order."""
    while True:
        levels, units = [], 1
        n_levels = rng.choice([1, 2, 3, 3])
        for i in range(n_levels):
            in_line = 0 < i == n_levels - 1 and rng.random() < 0.5
            level = LevelSpec(
                name="abc"[i],
                units=rng.choice([2, 3, 4, 5, 6, 8]),
                links=units * rng.choice([1, 2]) if in_line else rng.choice([1, 2, 3, 4, 6, 12]),
                lanes=1,
                link_bytes_per_s=1e9 * rng.choice([0.1, 1, 2, 5, 10, 50, 500]),
                hop_s=rng.choice([1e-9, 1e-8, 1e-7, 3e-7, 7e-7, 2e-6]),
                wiring="line" if in_line else "all-to-all",
            )
            levels.append(level)
            units *= level.units
        n_chips = min(units, rng.randint(most_chips // 2, most_chips))
        try:
            return custom_topology(levels, n_chips, chip_lanes=GROQ3_LPU.c2c_lanes)
        except PlanError:
            continue  # more lanes than a chip has


def of_lpus(topology: Topology, chip: ChipSpec | None = None) -> System:
    """A machine of Groq 3 LPUs, or of another chip, with these links."""
    return System(
        name="random", chip=chip or GROQ3_LPU, topology=topology, n_chips=topology.n_chips
    )


def random_request(rng: Random, longest: int) -> Request:
    """A decode step, now and then with drafts."""
    context = min(longest, rng.choice([64, 300, 700, 1500]))
    batch = rng.choice([1, 1, 2, 3, 4, 8])
    if rng.random() < 0.2:
        return Request(batch=batch, tokens=rng.randint(2, 5), context=context, acceptance=0.7)
    return Request(batch=batch, context=context)


def _expert_shares(rng: Random, model: ModelConfig, system: System) -> tuple[float, ...] | None:
    """Now and then experts that are chosen unequally often, each at most by every row."""
    moe = model.moe
    if moe is None or system.lpus is None or moe.n_experts == moe.top_k or rng.random() < 0.7:
        return None
    return tuple(rng.uniform(0.8, 1.0) for _ in range(moe.n_experts))


def _with_memory(rng: Random, scenario: Scenario) -> Scenario:
    """Give chips so much memory that all plans fit, some, or none."""
    system = scenario.system
    moe = None if scenario.model.moe is None else MoeShard()
    alone = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=moe)
    whole = float(evaluate([alone], scenario).used_bytes[0])
    share = rng.choice([0.7, 1.02, 1.1, 1.3, 1.7, 2.5, 1.5 * system.n_chips])
    n_bytes = int(whole / system.n_chips * share) + 1
    name = "memory_bytes" if isinstance(system.chip, GpuSpec) else "sram_bytes"
    chip = replace(system.chip, reserved_fraction=0.05, **{name: n_bytes})
    return replace(scenario, system=replace(system, chip=chip))


def random_scenario(rng: Random, most_plans: int, *, pools: bool = True) -> Scenario:
    """A scenario of at most so many plans, those of two pools counted or not."""
    while True:
        model, system = random_model(rng), random_system(rng)
        policy = POLICIES[rng.choice(["fp16", "fp16", "int8", "mxfp4"])]
        request = random_request(rng, model.max_position)
        shares = _expert_shares(rng, model, system)
        found = Scenario(model, system, request, policy=policy, expert_shares=shares)
        if EveryPlan(found, pools=pools).n_plans <= most_plans:
            return _with_memory(rng, found)


def random_mixed_scenario(rng: Random, most_plans: int) -> Scenario:
    """A scenario of at most so many plans on a mixed system."""
    while True:
        model, machine = random_model(rng), random_mixed(rng)
        policy = POLICIES[rng.choice(["fp16", "fp16", "int8", "mxfp4"])]
        request = random_request(rng, model.max_position)
        shares = _expert_shares(rng, model, machine.lpus)
        asked = Scenario(model, machine.lpus, request, policy=policy, expert_shares=shares)
        found = asked.on(machine)
        if EveryPlan(found).n_plans <= most_plans:
            return _with_memories(rng, found)


def _with_memories(rng: Random, scenario: Scenario) -> Scenario:
    """Give the chips of each pool so much memory that all plans fit, some, or none."""
    mixed = scenario.mixed
    assert mixed is not None
    moe = None if scenario.model.moe is None else MoeShard()
    parts = {"attention": AttentionShard(), "mlp": MlpShard(), "moe": moe}
    ffn = Pool(stages=1, group_chips=1)
    blocks = evaluate([Plan(group_chips=1, ffn=ffn, **parts)], scenario).blocks  # type: ignore[arg-type]
    machines = []
    for number, machine in enumerate((mixed.gpus, mixed.lpus)):
        held = [
            blocks[block.kind].held
            for block in block_chain(scenario.model)
            if (BLOCK_KINDS[block.kind].part in FFN_PARTS) == number
        ]
        whole = sum(float(np.sum(own.weights + own.cache)) for own in held)
        whole += max(float(np.sum(own.activations)) for own in held)
        share = rng.choice([1.02, 1.3, 1.7, 2.5, 5.0, *3 * [1.5 * machine.n_chips]])
        n_bytes = int(whole / machine.n_chips * share) + 1
        name = "memory_bytes" if isinstance(machine.chip, GpuSpec) else "sram_bytes"
        chip = replace(machine.chip, reserved_fraction=0.05, **{name: n_bytes})
        machines.append(replace(machine, chip=chip))
    return scenario.on(replace(mixed, gpus=machines[0], lpus=machines[1]))
