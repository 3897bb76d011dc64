"""One symbolic trace per kind of block gives the times of a trace made for each plan, exactly."""

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lpu_jax import mesh
from lpu_jax.cost.placed_machine import Groups, PlacedMachine, one_group
from lpu_jax.cost.program import Program, read
from lpu_jax.cost.schedule import Timing, schedule
from lpu_jax.machine.catalogue import system
from models import zoo
from models.blocks import CACHING_KINDS, Kind, block_arguments, block_kinds, block_program
from models.config import GqaConfig, ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.layers.moe import ExpertSizes
from models.policy import POLICIES
from sharding import axes
from sharding.predict.symbolic import symbol_values, trace_block
from sharding.request import Request

LLAMA = zoo.model("llama-2-70b")
KIMI = zoo.model("kimi-k2")
assert isinstance(LLAMA.attention, GqaConfig)
assert KIMI.moe is not None
TINY_LLAMA = dataclasses.replace(
    LLAMA,
    d_model=96,
    d_ff=160,
    vocab_size=320,
    attention=dataclasses.replace(LLAMA.attention, n_heads=6, n_kv_heads=2, head_dim=128),
)
TINY_KIMI = dataclasses.replace(
    KIMI,
    d_model=128,
    d_ff=288,
    vocab_size=512,
    moe=dataclasses.replace(KIMI.moe, n_experts=12, top_k=4, d_expert=64),
)
GPT = zoo.model("gpt-oss-20b")
NEXT = zoo.model("qwen3-next-80b-a3b")
KIMI_LINEAR = zoo.model("kimi-linear-48b-a3b")
LING = zoo.model("ling-3.0-flash")
KIMI_K3 = zoo.model("kimi-k3")
ULTRA = zoo.model("nemotron-3-ultra-550b-a55b")
EXPANDED = KIMI.with_latent_form("expanded")
#: Policies that a chip can run.
HELD = [name for name, policy in POLICIES.items() if policy is policy.on_chip]
MODELS = {"llama": LLAMA, "tiny llama": TINY_LLAMA, "kimi": KIMI, "tiny kimi": TINY_KIMI}
#: Of each of 20 kinds of block.
PLANS_PER_KIND, MANY_PLANS = 3, 30
GROQ_CHIPS = 576
SYSTEMS = ("lpx-4", f"groq-{GROQ_CHIPS}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One block of one plan: degrees by mesh axis, and what is asked of it."""

    cfg: ModelConfig
    kind: Kind
    policy: str
    split: Split
    ways: dict[str, int]
    request: Request
    slots: int
    capacity: int | None
    sent: int
    system: str
    dispatch: Dispatch = Dispatch.REPLICATED

    @property
    def sizes(self) -> Any:
        policy = POLICIES[self.policy]
        return axes.sizes(self.cfg, self.kind, policy, self.ways, self.request, self.split)

    @property
    def experts(self) -> dict[str, Any]:
        return {"slots": self.slots, "capacity": self.capacity, "sent": self.sent}

    @property
    def values(self) -> dict[str, Any]:
        experts = {name: length or 0 for name, length in self.experts.items()}
        return symbol_values(self.sizes, self.ways, axes.strides(self.ways), experts)


def random_cases(seed: int, cfg: ModelConfig, kind: Kind, n: int) -> Iterator[Case]:
    rng = random.Random(f"{seed}/{cfg.name}/{cfg.d_model}/{kind}")
    for _ in range(n):
        ways = dict.fromkeys(axes.MESH_AXES[kind], 1)
        for axis in ways:
            ways[axis] = rng.choice([1, 1, 2, 3, 4, 8])
        if kind in CACHING_KINDS:
            tensor = rng.choice([1, 2, 3, 4, 8, 16])
            ways["tensor"], ways["query"] = axes.split_heads(cfg, kind, tensor)
        split, policy = rng.choice(list(Split)), rng.choice(HELD)
        if split is Split.TREE:  # powers of two
            ways = {axis: 1 << (n.bit_length() - 1) for axis, n in ways.items()}
        if (kind, split, policy) == ("moe", Split.WIDE, "nvfp4"):
            policy = "int4"  # there is no wide sum of experts with a scale of a matrix
        n_chips = math.prod(ways.values())
        if n_chips > system("lpx-4").n_chips:
            ways = dict.fromkeys(ways, 1)
        # GroqChip1 has no float8 products.
        needs_lpx = n_chips > GROQ_CHIPS or policy == "fp8-rows"
        yield Case(
            cfg=cfg,
            kind=kind,
            policy=policy,
            split=split,
            ways=ways,
            request=Request(
                batch=ways.get("data", 1) * rng.choice([1, 2, 5]),
                tokens=rng.choice([1, 1, 2, 7, 64]),
                context=rng.choice([64, 320, 1000, 4096]),
            ),
            slots=rng.choice([1, 2, 5, 12]),
            capacity=rng.choice([None, 1, 3, 40]) if kind == "moe" else None,
            sent=rng.choice([1, 2, 7]),
            system="lpx-4" if needs_lpx else rng.choice(SYSTEMS),
        )


def machine_of(case: Case) -> PlacedMachine:
    return one_group(system(case.system), math.prod(case.ways.values()))


def symbolic_timing(case: Case) -> Timing:
    values = case.values
    return schedule(program_of(case), machine_of(case), values)


def program_of(case: Case) -> Program:
    return trace_block(
        case.cfg,
        case.kind,
        POLICIES[case.policy],
        case.split,
        "auto",
        dispatch=case.dispatch,
        moving=axes.moving_axes(case.kind, case.ways),
        gathers=case.capacity is not None,
    ).program


def concrete_timing(case: Case) -> Timing:
    sizes = case.sizes
    arguments = block_arguments(
        case.cfg, case.kind, POLICIES[case.policy], case.split, sizes, case.dispatch
    )
    program = block_program(
        case.cfg,
        case.kind,
        POLICIES[case.policy],
        case.split,
        experts=ExpertSizes(n_local=sizes.local.get("experts"), **case.experts),
        dispatch=case.dispatch,
    )
    jaxpr = mesh.trace(
        program,
        axes.chip_mesh(case.ways, system(case.system), "auto"),
        axes.partition_specs(case.kind, arguments, list(case.ways)),
        axes.result_specs(case.kind, arguments, list(case.ways)),
        *axes.global_shapes(arguments, sizes),
    )
    return schedule(read(jaxpr, strict=True), machine_of(case))


@pytest.mark.first(3)
@pytest.mark.parametrize(
    ("name", "kind"), [(n, kind) for n, cfg in MODELS.items() for kind in block_kinds(cfg)]
)
def test_symbolic_and_concrete_traces_give_the_same_cycles(name: str, kind: Kind) -> None:
    for case in random_cases(0, MODELS[name], kind, PLANS_PER_KIND):
        check_equal_cycles(case)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "kind"), [(n, kind) for n, cfg in MODELS.items() for kind in block_kinds(cfg)]
)
def test_the_cycles_of_many_plans_are_those_of_concrete_traces(name: str, kind: Kind) -> None:
    for case in random_cases(1, MODELS[name], kind, MANY_PLANS):
        check_equal_cycles(case)


def test_an_exchange_of_rows_is_timed_alike() -> None:
    for case in random_cases(0, TINY_KIMI, "moe", PLANS_PER_KIND):
        exchange = {"split": Split.ROW, "dispatch": Dispatch.ALL_TO_ALL}
        check_equal_cycles(dataclasses.replace(case, **exchange))


def check_equal_cycles(case: Case) -> None:
    symbolic, concrete = symbolic_timing(case), concrete_timing(case)
    for field in ("cycles", "lower_cycles", "upper_cycles", "busy_cycles"):
        assert getattr(symbolic, field) == getattr(concrete, field), (field, case)
    assert symbolic.lower_cycles <= symbolic.cycles <= symbolic.upper_cycles, case


@pytest.mark.parametrize(
    ("cfg", "kind"),
    [
        pytest.param(GPT, "attention", id="biases and sinks"),
        pytest.param(GPT, "sliding", id="window"),
        pytest.param(zoo.model("glm-4.6"), "attention", id="norms of heads, half rotated"),
        pytest.param(zoo.model("minimax-m2.5"), "attention", id="norms of all heads"),
        pytest.param(zoo.model("gemma-4-31b"), "attention", id="values that are keys"),
        pytest.param(zoo.model("gemma-4-31b"), "sliding", id="own heads of a window"),
        pytest.param(zoo.model("gemma-4-31b"), "dense", id="norm of a result"),
        pytest.param(EXPANDED, "attention", id="expanded latent"),
        pytest.param(NEXT, "attention", id="gated"),
        pytest.param(NEXT, "recurrent", id="recurrent"),
        pytest.param(NEXT, "moe", id="gated shared expert"),
        pytest.param(KIMI_LINEAR, "recurrent", id="decays of channels"),
        pytest.param(LING, "recurrent", id="bounded decays"),
        pytest.param(LING, "attention", id="latent, gated by head"),
        pytest.param(KIMI_K3, "recurrent", id="attention residuals"),
        pytest.param(KIMI_K3, "unrotated", id="latent, a gate for each value"),
        pytest.param(KIMI_K3, "moe", id="sums over experts normalised"),
        pytest.param(ULTRA, "recurrent", id="steps"),
        pytest.param(ULTRA, "moe", id="experts in a narrower space"),
        pytest.param(zoo.model("nemotron-h-56b"), "dense", id="without gates"),
        pytest.param(KIMI_LINEAR, "unrotated", id="latent, not rotated"),
        pytest.param(zoo.model("glm-5.2"), "indexed", id="an index"),
        pytest.param(zoo.model("glm-5.2"), "following", id="positions of another layer's index"),
        pytest.param(zoo.model("minimax-m3"), "blocked", id="an index of blocks"),
        pytest.param(zoo.model("minimax-m3"), "moe", id="clamped, a shared one too"),
    ],
)
def test_every_attention_has_one_program_for_all_plans(cfg: ModelConfig, kind: Kind) -> None:
    for case in random_cases(4, cfg, kind, PLANS_PER_KIND // 3):
        check_equal_cycles(case)


@pytest.mark.parametrize("n_new", [1, 16])
def test_a_sliding_layer_takes_no_longer_in_a_longer_context(n_new: int) -> None:
    ways = dict.fromkeys(axes.MESH_AXES["sliding"], 1) | {"tensor": 8}
    program = trace_block(GPT, "sliding", POLICIES["fp16"], Split.ROW, "auto").program
    cycles = set()
    for context in (1024, 4096, 131072):
        request = Request(tokens=n_new, context=context)
        sizes = axes.sizes(GPT, "sliding", POLICIES["fp16"], ways, request)
        assert sizes.local["window"] == 640  # up to 143 positions touch two vectors of 320
        values = symbol_values(sizes, ways, axes.strides(ways), {})
        cycles.add(float(schedule(program, one_group(system("lpx-4"), 8), values).cycles))
    assert len(cycles) == 1


@pytest.mark.parametrize("split", [Split.ROW, Split.TREE, Split.WIDE])
@pytest.mark.parametrize("capacity", [None, 3])
def test_many_plans_at_once_are_timed_as_one_by_one(capacity: int | None, split: Split) -> None:
    same = {"policy": "int4", "split": split, "system": "lpx-4", "capacity": capacity}
    found = [case for case in random_cases(1, KIMI, "moe", 60) if case.split is split]
    cases = [dataclasses.replace(case, **same) for case in found]
    assert len(cases) > 5
    chips = [math.prod(case.ways.values()) for case in cases]
    topology = system("lpx-4").topology
    together = PlacedMachine(
        system=system("lpx-4"),
        groups=tuple(Groups(n, topology.stage_bases(1, n)) for n in chips),
        group_of_plan=np.arange(len(cases)),
    )
    rows = [case.values for case in cases]
    columns = {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
    timing = schedule(program_of(cases[0]), together, columns)
    for i, case in enumerate(cases):
        alone = symbolic_timing(case)
        for field in ("cycles", "lower_cycles", "upper_cycles"):
            assert getattr(timing, field)[i] == getattr(alone, field), (field, case)


@pytest.mark.parametrize("kind", block_kinds(KIMI))
@pytest.mark.parametrize("grown", ["batch_local", "tokens", "context", "slots"])
def test_more_work_is_never_faster(kind: Kind, grown: str) -> None:
    check_growth(KIMI, kind, grown)


@pytest.mark.parametrize("grown", ["batch_local", "tokens"])
def test_more_states_and_tokens_are_never_faster(grown: str) -> None:
    check_growth(NEXT, "recurrent", grown)


def test_the_context_is_nothing_to_a_recurrent_layer() -> None:
    for case in random_cases(5, NEXT, "recurrent", 3):
        found = {
            symbolic_timing(
                dataclasses.replace(case, request=dataclasses.replace(case.request, context=n))
            ).cycles
            for n in (64, 4096, 262144)
        }
        assert len(found) == 1


def check_growth(cfg: ModelConfig, kind: Kind, grown: str) -> None:
    for case in random_cases(2, cfg, kind, 3):
        machine = machine_of(case)
        n = np.asarray([1, 2, 3, 8, 31, 32, 33, 64, 320, 321, 1000, 4096])
        values: dict[str, Any] = {
            name: np.full(n.shape, value) for name, value in case.values.items()
        }
        values[grown] = n
        many = dataclasses.replace(machine, group_of_plan=np.zeros(n.shape, np.int64))
        if grown == "context":
            values["kv_length"] = n
        timing = schedule(program_of(case), many, values)
        for field in ("cycles", "lower_cycles", "upper_cycles"):
            cycles = np.broadcast_to(getattr(timing, field), n.shape)
            assert np.all(np.diff(cycles) >= 0), (field, cycles, case)


def test_twice_the_clock_and_bandwidth_and_half_the_latency_take_half_the_time() -> None:
    for case in [*random_cases(3, LLAMA, "attention", 3), *random_cases(3, KIMI, "moe", 3)]:
        machine = machine_of(case)
        chip, topology = machine.system.chip, machine.system.topology
        faster = {
            field.name: getattr(topology, field.name) * (2 if "bytes_per_s" in field.name else 0.5)
            for field in dataclasses.fields(topology)
            if field.name.endswith("_s")
        }
        assert len(faster) >= 4
        quick = dataclasses.replace(
            machine.system,
            chip=dataclasses.replace(chip, clock_hz=2 * chip.clock_hz),
            topology=dataclasses.replace(topology, **faster),
        )
        program = program_of(case)
        values = case.values
        slow_s = schedule(program, machine, values).cycles / chip.clock_hz
        quick_machine = dataclasses.replace(machine, system=quick, _settings={})
        quick_s = schedule(program, quick_machine, values).cycles / quick.chip.clock_hz
        assert quick_s == slow_s / 2


@pytest.mark.parametrize("name", ["gpt-oss-20b", "glm-4.6", "qwen3-235b-a22b", "mixtral-8x7b"])
@pytest.mark.parametrize("split", list(Split))
def test_mixtures_of_all_families_are_traced_with_symbols(name: str, split: Split) -> None:
    program = trace_block(zoo.model(name), "moe", POLICIES["fp16"], split, "auto").program
    assert program.operations
