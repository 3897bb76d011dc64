"""What a plan does to the numbers: the sharded model beside a float32 one of the same weights.

A few blocks decode a few tokens, one after another, from random hidden states. Only the experts
that tokens choose are made, so that a trillion parameters never exist. Not measured: the error of
the stored formats themselves (the reference holds the same stored values), perplexity, and blocks
that were left out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lpu_jax.arguments import described
from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.datapath.mxm import Fidelity
from lpu_jax.errors import PlanError
from lpu_jax.machine.mixed import Machine
from lpu_jax.predicates import is_whole
from models.blocks import BLOCK_KINDS, Block, block_chain
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.params import Kind
from models.policy import FP16, Policy
from models.weights.source import WeightSource
from models.weights.synthetic import SyntheticWeights

from ..axes import allocated_positions, dispatch_of, shard_of
from ..legal import check_plan
from ..plan import Plan, check_are_plans
from ..predict.evaluate import evaluate
from ..rank.choose import default_plans
from ..rank.comparison import Comparison
from ..report import Watcher, check_watcher
from ..request import Request
from ..run.measures import finite
from ..scenario import (
    policy_of_values,
    require_values,
    scenario,
    source_config,
    system_of_kind,
)
from .emulate import BlockCheck, Run, Step, run_steps


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How far a plan's numbers are from a float32 model with the same stored weights."""

    plan: Plan
    sqnr_db: float  #: of the last hidden state
    max_abs_err: float
    fidelity: Fidelity
    blocks: tuple[BlockCheck, ...]
    routes_agree: bool | None  #: the reference alone chooses the same experts; None without experts
    #: smallest lead of a chosen expert's score over the best one left out, in the reference
    router_margin: float | None
    rounding_moved: tuple[
        str, ...
    ]  #: where the plan rounds, or adds in an order, that one chip does not
    output_hash: str  #: SHA-256 of the last hidden state's bits
    output: Float[np.ndarray, "tokens d"] = field(repr=False, compare=False)

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
        values |= {"sqnr_db": finite(self.sqnr_db), "max_abs_err": finite(self.max_abs_err)}
        values["rounding_moved"] = list(self.rounding_moved)
        values["blocks"] = [block.as_dict() for block in self.blocks]
        return values


def check(
    model: str | Path | ModelConfig,
    system: str | Path | Machine,
    plans: Sequence[Plan] | None = None,
    *,
    policy: str | Policy = "fp16",
    source: WeightSource | None = None,
    layers: Sequence[int] | None = None,
    tokens: int = 2,
    seed: int = 0,
    execution: str = "virtual",
    progress: Watcher = lambda *_: None,
) -> list[CheckResult]:
    """Run some layers of a model under several plans and compare each with the float32 reference.

    Tokens are decoded one after another with a cache; the first layer starts from seeded random
    hidden states. The reference is forced to the experts that the emulated router chose.

    Args:
        model: a zoo name, the path of a `config.json`, or a configuration.
        system: a system's name, the path of a TOML file, or a system; its node and rack sizes fix
            the order of sums across chips. A mixed one has attention on its GPUs, and multiplies
            there by a model of their tensor cores.
        plans: all are run on the same weights; None: those of `choose.default_plans`.
        policy: name of a precision policy, or a policy.
        source: weights; by default random ones made from `seed`.
        layers: run in this order; by default the first layer, and the first one with experts.
        tokens: how many.
        seed: of the hidden states, and of random weights.
        execution: as for `execute.run_block`.
        progress: called with the steps done, the steps in all and what comes next;
            a step is a block.

    Returns:
        One result per plan.

    Raises:
        LpuError: it is GPUs alone.
        PlanError: no tokens or layers were asked for, or a plan is not legal.
        CostError: a plan names a collective that does not exist over its links.

    Fidelity: that of `policy`, bit for bit if faithful; the reference is float32 and
        order-dependent.
    """
    asked = scenario(model, system, Request(context=1), policy=policy)
    cfg, machine = asked.model, asked.machine
    require_values(machine, "check")
    formats = policy_of_values(asked.policy, machine)
    plans = default_plans(cfg, machine, policy=formats) if plans is None else plans
    check_are_plans("check", plans)
    if not (is_whole(seed) and seed >= 0):
        raise PlanError(f"check: seed is {described(seed)}; it must be a whole number, at least 0.")
    if source is not None and source_config(source) != cfg:
        raise PlanError(
            f"check: source has weights of {source_config(source).name}, whose configuration is "
            f"not that of the model {cfg.name}; give its own, source.config, as the model."
        )
    check_watcher("check", progress)
    check_n_tokens(tokens, cfg, plans)
    chosen = check_layers(cfg, default_layers(cfg) if layers is None else layers)
    check_plans(cfg, machine, plans, policy=formats)
    weights = SyntheticWeights(cfg, seed) if source is None else source
    start = _hidden_states(tokens, cfg.hidden_width, seed).astype(formats.dtype)
    runs = [Run(plan=plan, hidden=start, reference=start.astype(np.float32)) for plan in plans]
    blocks = blocks_of(cfg, chosen)
    done = count()
    run_steps(
        [Step(weights, machine, block, policy=formats, execution=execution) for block in blocks],
        runs,
        starting=lambda step: progress(
            next(done), len(blocks), f"{step.kind} of layer {step.layer}, {len(plans)} plans"
        ),
    )
    kinds = [block.kind for block in blocks]
    return [_result(run, cfg, machine, kinds, formats) for run in runs]


def default_layers(cfg: ModelConfig) -> tuple[int, ...]:
    """The first layer, and the first one with experts if there is one, behind what it follows."""
    with_experts = [layer for layer in range(cfg.n_layers) if cfg.is_moe_layer(layer)]
    followed = [cfg.followed_layer(layer) for layer in with_experts[:1]]
    return tuple(dict.fromkeys([0, *followed, *with_experts[:1]]))


def check_n_tokens(n_tokens: int, cfg: ModelConfig, plans: Sequence[Plan]) -> None:
    """Refuse no tokens, and more than the model has positions or the smallest cache has room for.

    Raises:
        PlanError: says how many are possible.
    """
    room = min((allocated_positions(plan) for plan in plans), default=POSITIONS_STEP)
    most = min(room, cfg.max_position)
    if not (is_whole(n_tokens) and 1 <= n_tokens <= most):
        raise PlanError(f"check: {n_tokens} tokens were asked for; 1 to {most} are possible.")


def check_layers(cfg: ModelConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """Refuse layers that the model does not have, or none; return them.

    Raises:
        PlanError: says which.
    """
    if not isinstance(layers, Sequence):
        raise PlanError(f"check: layers is {described(layers)}; it must be a list of layers.")
    if not layers:
        raise PlanError("check: no layers were asked for; at least one is needed.")
    for layer in layers:
        if not (is_whole(layer) and 0 <= layer < cfg.n_layers):
            raise PlanError(
                f"check: layer {described(layer)} was asked for; {cfg.name} has 0 to "
                f"{cfg.n_layers - 1}."
            )
    for number, layer in enumerate(layers):
        followed = cfg.followed_layer(layer)
        before = [one for one in layers[:number] if one not in cfg.following_layers]
        if followed != layer and before[-1:] != [followed]:
            raise PlanError(
                f"check: layer {layer} was asked for; it attends where layer {followed} of "
                f"{cfg.name} does, which must be asked for before it."
            )
    return tuple(layers)


def check_plans(
    cfg: ModelConfig, system: Machine, plans: Sequence[Plan], *, policy: Policy
) -> None:
    """Refuse plans that do not exist; a policy that no chip runs takes as much room as fp16.

    Raises:
        PlanError: a plan is not legal.
        CostError: a plan names a collective that does not exist over its links.
    """
    held = policy.on_chip
    for plan in plans:
        # The single sequence is padded to as many as the plan spreads over chips.
        request = Request(batch=plan.attention.data, context=allocated_positions(plan))
        asked = scenario(cfg, system, request, policy=held)
        check_plan(plan, asked)
        if plan.collective != "auto":
            evaluate([plan], asked)  # refuses links that do not exist


def blocks_of(cfg: ModelConfig, layers: Sequence[int]) -> list[Block]:
    """List the blocks of some layers, in the order of `layers`."""
    body = block_chain(cfg)[1:-1]
    return [block for layer in layers for block in body if block.layer == layer]


def _hidden_states(tokens: int, width: int, seed: int) -> Float[np.ndarray, "tokens d"]:
    """Random rows with the spread of an embedding table's."""
    generator = np.random.default_rng([seed, width])
    return generator.standard_normal((tokens, width), dtype=np.float32).astype(np.float16)


def _result(
    run: Run, cfg: ModelConfig, system: Machine, kinds: Sequence[Kind], policy: Policy
) -> CheckResult:
    routings = [check.routing for check in run.checks if check.routing is not None]
    return CheckResult(
        plan=run.plan,
        sqnr_db=run.checks[-1].sqnr_db,
        max_abs_err=run.checks[-1].max_abs_err,
        fidelity=policy.fidelity,
        blocks=tuple(run.checks),
        routes_agree=all(routing.flips == 0 for routing in routings) if routings else None,
        router_margin=min((routing.margin for routing in routings), default=None),
        rounding_moved=rounding_moved(
            cfg, system, run.plan, kinds, policy=policy, n_tokens=len(run.hidden)
        ),
        output_hash=hashlib.sha256(run.hidden.tobytes()).hexdigest(),
        output=run.hidden,
    )


def rounding_moved(
    cfg: ModelConfig,
    system: Machine,
    plan: Plan,
    kinds: Sequence[Kind],
    *,
    policy: Policy = FP16,
    n_tokens: int,
) -> tuple[str, ...]:
    """Say in words where a plan rounds or adds otherwise than one chip does.

    Args:
        cfg: the model.
        system: its node and rack sizes fix the order of sums across chips.
        plan: the plan.
        kinds: kinds of block to speak of.
        policy: its wire, or else its base, is the format of partial sums.
        n_tokens: decoded so far; they decide how many chips of a shared context hold positions.
    """
    sentences = []
    for kind in dict.fromkeys(kinds):
        node_chips, *wider = system_of_kind(system, kind).topology.tiers
        shard = shard_of(plan, kind)
        if dispatch_of(plan, kind) is Dispatch.ALL_TO_ALL:
            sentences.append(_exchanged(shard.degrees["expert"], policy))
            continue
        sentences += [
            axis.moves(shard.degrees[axis.name], n_tokens, policy.base)
            for axis in shard.moving_axes
            if axis.moves and not BLOCK_KINDS[kind].whole.issuperset(axis.splits)
        ]
        n_chips, split = shard.output_ways, shard.split
        if split is Split.COLUMN:
            continue
        if split in _OWN_RULES:
            sentences.append(
                f"{BLOCK_KINDS[kind].result}: {_OWN_RULES[split]}, on one chip as on "
                f"{'any number' if n_chips == 1 else n_chips} ({split} split)"
            )
            continue
        sums = f"{BLOCK_KINDS[kind].result}: partial sums over {n_chips} chips"
        if policy.wire == "exact":
            sentences.append(f"{sums} are rounded to fp32 and added exactly (row split)")
            continue
        order = "added in chip order"
        if n_chips > node_chips:
            order += f" inside each run of {node_chips} chips, rounded, then across runs"
            if wider and n_chips > wider[0]:
                order += f" and across racks of {wider[0]}"
        sentences.append(
            f"{sums} are rounded to {policy.base if policy.wire == 'base' else policy.wire} and "
            f"{order} (row split)"
        )
    return tuple(sentences)


#: What splits do that have the same bits for other numbers of chips, but not those of columns.
_OWN_RULES = {
    Split.TREE: "leaves are added in fp32 by a binary tree",
    Split.WIDE: "sums are exact and rounded once",
}


def _exchanged(n_chips: int, policy: Policy) -> str:
    """Say what an exchange of rows between the chips of the expert axis does."""
    return (
        f"sum over experts: each of {n_chips} chips of the expert axis rounds its part of a row to "
        f"{policy.base} and sends it to the row's owner, which adds them in chip order, then "
        "the shared expert and the hidden state (all-to-all dispatch)"
    )


def with_numerics(
    comparison: Comparison, n_plans: int, progress: Watcher = lambda *_: None
) -> Comparison:
    """Run the first plans of a comparison on virtual chips and note their numerical error.

    Two tokens are decoded with synthetic weights through one dense and one MoE layer at full width.

    Args:
        comparison: from `compare`.
        n_plans: how many rows.
        progress: called with the steps done, the steps in all and what comes next.

    Raises:
        LpuError: the system has no values to check: GPUs alone, or a split between two models.
    """
    asked, plans = comparison.scenario, [row.plan for row in comparison.rows[:n_plans]]
    results = check(asked.model, asked.machine, plans, policy=asked.policy, progress=progress)
    checked = [
        replace(row, numerics=result.as_dict())
        for row, result in zip(comparison.rows[:n_plans], results, strict=True)
    ]
    return replace(comparison, rows=(*checked, *comparison.rows[n_plans:]))
