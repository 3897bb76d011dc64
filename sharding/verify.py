"""What a plan does to the numbers: the sharded model beside a float32 one of the same weights.

A few blocks decode a few tokens, one after another, from random hidden states. Only the experts
that tokens choose are made, so that a trillion parameters never exist. Not measured: the error of
the stored formats themselves (the reference holds the same stored values), perplexity, and blocks
that were left out.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float16

from lpu_jax.errors import PlanError
from lpu_jax.system import System
from models.blocks import Kind
from models.config import ModelConfig
from models.layers.linear import Split
from models.policy import Policy
from models.weights.source import WeightSource
from models.weights.synthetic import SyntheticWeights

from .axes import Request, degrees
from .emulate import CONTEXT, BlockCheck, Run, Step
from .evaluate import evaluate
from .legal import check_plan
from .load import block_split
from .plan import Plan

#: Plans compiled and run side by side: memory holds one cut copy of a block's weights for each.
_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How far a plan's numbers are from a float32 model with the same stored weights."""

    plan: Plan
    sqnr_db: float  #: of the last hidden state
    max_abs_err: float
    fidelity: Literal["faithful"]
    blocks: tuple[BlockCheck, ...]
    routes_agree: bool | None  #: the reference alone chooses the same experts; None without experts
    #: smallest lead of a chosen expert's score over the best one left out, in the reference
    router_margin: float | None
    rounding_moved: tuple[
        str, ...
    ]  #: where the plan rounds, or adds in an order, that one chip does not
    output_hash: str  #: SHA-256 of the last hidden state's bits
    output: Float16[np.ndarray, "tokens d"] = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON, without the output; an infinite SQNR is None."""
        values = {
            name: getattr(self, name)
            for name in (
                "sqnr_db",
                "max_abs_err",
                "fidelity",
                "routes_agree",
                "router_margin",
                "output_hash",
            )
        }
        values["sqnr_db"] = _finite(self.sqnr_db)
        values["rounding_moved"] = list(self.rounding_moved)
        values["blocks"] = [
            {
                "kind": block.kind,
                "layer": block.layer,
                "sqnr_db": _finite(block.sqnr_db),
                "change_sqnr_db": _finite(block.change_sqnr_db),
                "max_abs_err": block.max_abs_err,
            }
            for block in self.blocks
        ]
        return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_plans(
    cfg: ModelConfig,
    system: System,
    plans: Sequence[Plan],
    policy: Policy,
    source: WeightSource | None = None,
    *,
    layers: Sequence[int] | None = None,
    tokens: int = 2,
    seed: int = 0,
    execution: str = "virtual",
    progress: Callable[[str], None] = lambda _: None,
) -> list[CheckResult]:
    """Run some layers of a model under several plans and compare each with the float32 reference.

    Tokens are decoded one after another with a cache; the first layer starts from seeded random
    hidden states. The reference is forced to the experts that the emulated router chose.

    Args:
        cfg: the model.
        system: its node and rack sizes fix the order of sums across chips.
        plans: all are run on the same weights.
        policy: formats of the weights.
        source: weights; by default random ones made from `seed`.
        layers: run in this order; by default the first layer, and the first one with experts.
        tokens: how many.
        seed: of the hidden states, and of random weights.
        execution: `virtual` chips, or `devices`.
        progress: told what is being done.

    Returns:
        One result per plan.

    Raises:
        LpuError: the system is one of GPUs.
        PlanError: no tokens or layers were asked for, or a plan is not legal.
        CostError: a plan names a collective that does not exist over its links.

    Fidelity: the emulation is faithful, bit for bit; the reference is float32 and order-dependent.
    """
    system.require_lpu("check")
    if not 1 <= tokens <= CONTEXT:
        raise PlanError(f"check: {tokens} tokens were asked for; 1 to {CONTEXT} are possible.")
    chosen = default_layers(cfg) if layers is None else tuple(layers)
    if not chosen:
        raise PlanError("check: no layers were asked for; at least one is needed.")
    for plan in plans:
        # The single sequence is padded to as many as the plan spreads over chips.
        request = Request(batch=plan.attention.data, context=CONTEXT)
        check_plan(plan, cfg, system, policy, request)
        if plan.collective != "auto":
            evaluate([plan], cfg, system, policy, request)  # refuses links that do not exist
    weights = SyntheticWeights(cfg, seed) if source is None else source
    start = _hidden_states(tokens, cfg.d_model, seed)
    topology = system.topology
    tiers = (topology.node_chips, topology.rack_chips)
    runs = [Run(plan=plan, hidden=start, reference=start.astype(np.float32)) for plan in plans]
    steps = [
        Step(weights, policy, kind, layer, tiers, execution) for kind, layer in _blocks(cfg, chosen)
    ]
    with ThreadPoolExecutor(_WORKERS) as workers:
        coming = workers.submit(steps[0].store)
        for i, step in enumerate(steps):
            progress(f"{step.kind} of layer {step.layer}, {len(plans)} plans")
            stored = coming.result()
            if i + 1 < len(steps):
                coming = workers.submit(steps[i + 1].store)
            step.run(runs, stored, workers)
            del stored
    kinds = [step.kind for step in steps]
    return [_result(run, cfg, tiers, kinds) for run in runs]


def default_layers(cfg: ModelConfig) -> tuple[int, ...]:
    """The first layer, and the first one with experts if there is one."""
    with_experts = [layer for layer in range(cfg.n_layers) if cfg.is_moe_layer(layer)]
    return tuple(dict.fromkeys([0, *with_experts[:1]]))


def _blocks(cfg: ModelConfig, layers: Sequence[int]) -> Iterator[tuple[Kind, int]]:
    for layer in layers:
        yield "attention", layer
        yield ("moe" if cfg.is_moe_layer(layer) else "dense"), layer


def _hidden_states(tokens: int, d_model: int, seed: int) -> Float16[np.ndarray, "tokens d"]:
    """Random rows with the spread of an embedding table's."""
    generator = np.random.default_rng([seed, d_model])
    return generator.standard_normal((tokens, d_model), dtype=np.float32).astype(np.float16)


def _result(
    run: Run, cfg: ModelConfig, tiers: tuple[int, ...], kinds: Sequence[Kind]
) -> CheckResult:
    return CheckResult(
        plan=run.plan,
        sqnr_db=run.checks[-1].sqnr_db,
        max_abs_err=run.checks[-1].max_abs_err,
        fidelity="faithful",
        blocks=tuple(run.checks),
        routes_agree=run.routes_agree,
        router_margin=run.router_margin,
        rounding_moved=rounding_moved(cfg, run.plan, tiers, kinds),
        output_hash=hashlib.sha256(run.hidden.tobytes()).hexdigest(),
        output=run.hidden,
    )


def rounding_moved(
    cfg: ModelConfig, plan: Plan, tiers: tuple[int, ...], kinds: Sequence[Kind]
) -> tuple[str, ...]:
    """Say in words where a plan rounds or adds otherwise than one chip does.

    Args:
        cfg: the model.
        plan: the plan.
        tiers: chips of a node and of a rack.
        kinds: kinds of block to speak of.
    """
    said = {
        "attention": "attention output",
        "dense": "dense MLP output",
        "moe": "sum over experts and shared expert's output",
    }
    sentences = []
    for kind in dict.fromkeys(kinds):
        ways = degrees(plan, kind, cfg)
        n_chips = math.prod(n for axis, n in ways.items() if axis in ("tensor", "query", "expert"))
        if block_split(plan, kind) is Split.COLUMN or n_chips == 1 or kind not in said:
            continue
        order = "added in chip order"
        if tiers and n_chips > tiers[0]:
            order += f" inside each run of {tiers[0]} chips, rounded, then across runs"
            if len(tiers) > 1 and n_chips > tiers[1]:
                order += f" and across racks of {tiers[1]}"
        sentences.append(
            f"{said[kind]}: partial sums over {n_chips} chips are rounded to fp16 and {order} "
            "(row split)"
        )
    return tuple(sentences)
