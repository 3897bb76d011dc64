"""Served models and other planners beside ours: to be looked at, not to pass or fail.

Of the services the plan, the batch and what else they do (speculative decoding, for one) are not
public; the other planners were given GroqChip1's numbers as far as their inputs allow. Not
modelled: those services and those planners; their figures are copied.

Sources, by key: TNP The Next Platform, 2023-11; GD Groq console documentation; AIC NVIDIA
AIConfigurator 0.12.0 in mode SOL; GenZ genz-llm 0.0.16; TokenSim, its formula worked out by hand;
SCALE-Sim 3.0.0. The first two planners and SCALE-Sim were run with a description of GroqChip1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lpu_jax.machine.catalogue import system as named_system
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.quantities import format_bytes
from models.config import ModelConfig
from models.params import n_parameters
from models.policy import Policy
from models.zoo import model as named_model

from ..plan import AttentionShard, MlpShard, Plan
from ..predict.placement import usable_bytes
from ..rank.compare import compare
from ..rank.comparison import Comparison
from ..report import Watcher
from ..request import Request
from ..scenario import Scenario, scenario
from ..search.find import find_plans, fits_somehow
from .figures import Figure, Group
from .reading import plan_reading

CONTEXT = 4096
REQUEST = Request(context=CONTEXT)
#: ISCA22: chips of a rack, and racks of the largest machine.
RACK_CHIPS, MOST_RACKS = 72, 145
#: No policy stores a weight in fewer bits.
FEWEST_BITS = 4
#: The vendor's policy for served models, as far as it is described.
SERVED_POLICY = "groq-truepoint"


@dataclass(frozen=True, kw_only=True)
class Planner:
    """What another planner says of the two plans, in ms per token."""

    name: str
    ms: tuple[float, ...]
    note: str = ""


PLANNERS = (
    Planner(name="AIC", ms=(0.441, 0.269), note="no hop latency; says that both run out of memory"),
    Planner(name="GenZ", ms=(15.01, 2.57), note="every all-reduce is one flat ring"),
    Planner(name="TokenSim", ms=(0.977, 1.449), note="formula, not run; fit is judged per product"),
    Planner(name="SCALE-Sim", ms=(3.9,), note="products only, four arrays, no links"),
)
#: Tensor ways and stages of the two plans.
PEER_PLANS = ((64, 8), (8, 80))


def llama_served() -> tuple[Figure, ...]:
    """Llama-2-70B in int8 on 576 chips: the service, our best plan, and one chip after another."""
    cfg, machine = named_model("llama-2-70b"), named_system("groq-576")
    found = compare(cfg, machine, REQUEST, policy="int8")
    served_us = 1e6 / 300 / cfg.n_layers
    stream_bytes_per_s = GROQCHIP1.weight_stream_bytes_per_cycle * GROQCHIP1.clock_hz
    serial_s = n_parameters(cfg) / stream_bytes_per_s
    what = "Llama-2-70B int8, 576 GroqChip1, 1 user"
    best = found.rows[0]
    return (
        Figure(
            what=f"{what}, best plan",
            source="TNP: about 300 tokens/s",
            group=Group.MEASURED,
            unit="us/layer",
            published=served_us,
            **plan_reading(best.plan, found.scenario, 1e6 / cfg.n_layers, chosen=True),
            note=f"{best.plan.name}, context {CONTEXT}; {best.tokens_per_s_per_user:.0f} tokens/s "
            "without anything that a service adds",
        ),
        Figure(
            what=f"{what}, serial bound",
            source="TNP: about 300 tokens/s",
            group=Group.MEASURED,
            unit="us/layer",
            published=served_us,
            ours=serial_s * 1e6 / cfg.n_layers,
            note=f"all weights through the streams of one chip after another: {serial_s * 1e3:.2f} "
            f"ms, {serial_s * 1e6 / cfg.n_layers / served_us:.2f} of the service's time",
        ),
    )


def kimi_served(progress: Watcher = lambda *_: None) -> Figure:
    """Kimi K2 on the fewest whole racks of GroqChip1 that hold it."""
    cfg = named_model("kimi-k2")
    racks = fewest_racks(cfg, groq_racks, REQUEST, policy=SERVED_POLICY, progress=progress)
    asked = scenario(cfg, groq_racks(racks), REQUEST, policy=SERVED_POLICY)
    best = fastest(asked)
    assert best is not None  # the racks were chosen so
    return Figure(
        what="Kimi K2, GroqChip1, 1 user",
        source="GD: 200 tokens/s, chips not public",
        group=Group.MEASURED,
        unit="us/token",
        published=1e6 / 200,
        **plan_reading(best, asked, 1e6, chosen=True),
        note=f"{asked.system.n_chips} chips: the fewest racks ({racks}) on which a plan of ours "
        f"fits; weights {SERVED_POLICY}, context {CONTEXT}; {best.name}",
    )


def groq_racks(racks: int) -> str:
    """Name a machine of whole racks of GroqChip1."""
    return f"groq-{racks * RACK_CHIPS}"


def fewest_racks(
    cfg: ModelConfig,
    named: Callable[[int], str],
    request: Request,
    *,
    policy: str | Policy,
    progress: Watcher = lambda *_: None,
    most: int = MOST_RACKS,
) -> int:
    """Find the fewest whole racks on which some plan fits, by bisection.

    Args:
        cfg: the model; it fits on `most` racks.
        named: the name of a machine of so many racks.
        request: batch, tokens and context.
        policy: formats of the weights.
        progress: called with the steps done, the steps in all and what comes next.
        most: racks to begin with.

    """
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        asked = scenario(cfg, named(middle), request, policy=policy)
        if asked.system.memory_bytes < n_parameters(cfg) * FEWEST_BITS / 8:
            low = middle + 1
            continue
        progress(2, 5, f"does {cfg.name} fit on {middle} racks?")
        if fits_somehow(asked):
            high = middle
        else:
            low = middle + 1
    return high


def fastest(scenario: Scenario) -> Plan | None:
    """Find the fastest plan that fits; None if none does."""
    plans, _ = find_plans(scenario)
    return None if plans is None else plans[0]


def peers() -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """Llama-3-70B in 8 bits on two plans, by other planners and by us."""
    figures: list[Figure] = []
    ours_ms, remarks = [], []
    for column, (tensor, stages) in enumerate(PEER_PLANS):
        found = _peer_plan(tensor, stages)
        reading = plan_reading(found.rows[0].plan, found.scenario, 1e3)
        ours_ms.append(reading["ours"])
        name = f"TP{tensor}xPP{stages}"
        figures += [
            Figure(
                what=f"Llama-3-70B int8, {name}, {planner.name}",
                source=f"{planner.name} with GroqChip1's numbers",
                group=Group.PLANNER,
                unit="ms/token",
                published=planner.ms[column],
                note=planner.note if column == 0 else "",
                **reading,
            )
            for planner in PLANNERS
            if column < len(planner.ms)
        ]
        machine = found.scenario.system
        best = compare(found.scenario.model, machine, REQUEST, policy="int8").rows[0]
        remarks.append(
            f"{name}: {_fit(found)} Our best plan on {machine.n_chips} chips: "
            f"{best.plan.name}, {best.decode_latency_s * 1e3:.3f} ms."
        )
    votes = [f"{p.name} {_preferred(p.ms)}" for p in PLANNERS if len(p.ms) == len(PEER_PLANS)]
    remarks.insert(
        0, f"Preferred of these two plans: {', '.join([*votes, f'ours {_preferred(ours_ms)}'])}."
    )
    return tuple(figures), tuple(remarks)


def _peer_plan(tensor: int, stages: int) -> Comparison:
    plan = Plan(
        stages=stages,
        group_chips=tensor,
        attention=AttentionShard(tensor=tensor),
        mlp=MlpShard(tensor=tensor),
    )
    return compare(
        "llama-3.1-70b",
        f"groq-{tensor * stages}",
        REQUEST,
        policy="int8",
        plans=[plan],
    )


def _preferred(ms: Sequence[float]) -> str:
    tensor, stages = PEER_PLANS[ms.index(min(ms))]
    return f"TP{tensor}xPP{stages}"


def _fit(found: Comparison) -> str:
    """Whether the one plan of a comparison fits, and which block is the largest."""
    row = found.rows[0]
    if row.fits:
        return f"fits, {row.sram_used_fraction:.0%} of the SRAM."
    held = {k: float(np.max(b.held.weights)) for k, b in found.evaluation.blocks.items()}
    largest = max(held, key=lambda kind: held[kind])
    size = format_bytes(held[largest], digits=3)
    asked = found.scenario
    usable = format_bytes(usable_bytes(asked.system.chip), digits=3)
    weights = format_bytes(row.memory_bytes["weights"], digits=3)
    even = format_bytes(n_parameters(asked.model) / asked.system.n_chips, digits=3)
    return (
        f"does not fit here: {weights} of weights on the fullest chip, padded to whole vectors "
        f"(an even split of 8-bit weights would be {even}); the largest block, {largest}, has "
        f"{size} on each chip of its stage, of {usable} usable."
    )
