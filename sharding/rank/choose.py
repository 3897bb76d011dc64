"""The plan that is taken if none is given, and what a plan promises of its bits.

For running a whole model on text, chips form one group: stages change no value. The fastest plan is
then that for a single short sequence, so that a text's bits do not depend on what else is asked
for, as long as it fits.
"""

from dataclasses import replace
from typing import Any

from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import PlanError
from lpu_jax.machine.mixed import Machine, MixedSystem
from lpu_jax.machine.system import System
from models.blocks import block_kinds
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import Policy

from ..axes import allocated_positions, shard_of
from ..plan import Plan
from ..request import NEXT_TOKEN, Request
from ..scenario import Scenario, check_policy
from ..search.find import INVARIANT, find_plans
from ..search.nearest import nearest_plans
from ..space.cores import Choices
from .compare import compare
from .comparison import Comparison

#: Plans split by columns among which two with different degrees are looked for.
_CANDIDATES = 32


def fastest_plan(cfg: ModelConfig, system: Machine, *, policy: Policy) -> tuple[Plan, str]:
    """Choose the fastest plan that fits, or else the one that lacks the least memory.

    Returns:
        The plan, and a sentence if it does not fit; else an empty one.

    Raises:
        LpuError: as `compare`.
    """
    held = policy.on_chip
    if isinstance(system, System):
        check_policy(held, cfg, system)
    request = Request(context=min(POSITIONS_STEP, cfg.max_position))
    row = compare(cfg, system, request, policy=held, top=1).rows[0]
    note = "" if row.fits else f"No plan fits; the nearest is run: it {row.reason}."
    return row.plan, note


def default_plans(cfg: ModelConfig, system: Machine, *, policy: Policy) -> list[Plan]:
    """Choose three plans: two split by columns with different degrees, and one split by rows.

    Args:
        cfg: the model.
        system: the machine.
        policy: formats of the weights.

    Returns:
        The fastest plan split by columns that fits (or that lacks least), one like it with other
        degrees, and the first one's degrees split by rows. On a mixed system the fastest alone.

    Raises:
        LpuError: it is a GPU system.
        PlanError: the machine has no two different splits of a group.
    """
    if isinstance(system, MixedSystem):
        return [fastest_plan(cfg, system, policy=policy)[0]]
    system.require_lpu("check")
    policy = policy.on_chip
    check_policy(policy, cfg, system)
    request = Request(context=min(cfg.max_position, NEXT_TOKEN.context))
    scenario = Scenario(cfg, system, request, policy=policy)
    choices = replace(INVARIANT["certified"], splits_all=True, pools=False)
    found, _ = find_plans(scenario, top=_CANDIDATES, choices=choices)
    plans = list(nearest_plans(scenario, _CANDIDATES, choices) if found is None else found)
    by_column = [plan for plan in plans if _splits_all(plan, cfg)]
    if not by_column:
        raise PlanError(
            f"{system.name} has no plan that splits every block of {cfg.name}; give --plan."
        )
    first = by_column[0]
    others = [
        plan
        for plan in by_column
        if plan.attention.tensor != first.attention.tensor
        and (plan.moe is None or first.moe is None or plan.moe.expert != first.moe.expert)
    ]
    if not others:
        raise PlanError(f"{system.name} has only one split of {cfg.name} by columns; give --plan.")
    return [first, others[0], split_by(first, Split.ROW)]


def promises_one_chip_bits(plan: Plan) -> bool:
    """Whether a plan gives the bits of one chip that splits nothing, for every model it can run.

    It does if every output projection is split by columns; one that is not split at all counts
    too, unless it adds by a rule of its own. A split by rows rounds partial sums, trees and wide
    sums round elsewhere, an exchange of rows adds the shared expert's result in another place, and
    some axes, such as a context that chips share out, round whatever the split.
    """
    by_columns = all(shard.split is Split.COLUMN for shard in plan.parts.values())
    return by_columns and promises_its_rule(plan)


def promises_its_rule(plan: Plan) -> bool:
    """Whether a plan gives the bits of one chip that adds by the plan's own rules.

    That is `on_one_chip`; for plans split by columns it is one chip that splits nothing. Trees give
    them for every number of chips that is legal, wide sums and columns for any. Splits by rows do
    not, nor an exchange of rows, nor axes that round whatever the split.
    """
    if plan.moe is not None and plan.moe.dispatch is Dispatch.ALL_TO_ALL:
        return False
    return not any(shard.moving_axes or shard.split is Split.ROW for shard in plan.parts.values())


def on_one_chip(plan: Plan) -> Plan:
    """One chip that adds by the rules of a plan: what its bits are compared with."""
    parts: dict[str, Any] = dict(plan.parts)
    alone = {name: replace(part, **dict.fromkeys(part.degrees, 1)) for name, part in parts.items()}
    return replace(plan, stages=1, group_chips=1, ffn=None, collective="auto", **alone)


def rules_of(plan: Plan) -> tuple[Split, ...]:
    """The rules by which a plan's parts add: plans that promise these have the same bits."""
    return tuple(shard.split for shard in plan.parts.values())


def _splits_all(plan: Plan, cfg: ModelConfig) -> bool:
    """Whether a plan splits every kind of block that the model has."""
    shards = [shard_of(plan, kind) for kind in block_kinds(cfg)]
    return all(s.output_ways > 1 for s in shards if any(axis.sums for axis in s.axes))


def split_by(plan: Plan, split: Split) -> Plan:
    """The same degrees with another split of every output projection."""
    return replace(
        plan,
        attention=replace(plan.attention, split=split),
        mlp=replace(plan.mlp, split=split),
        moe=None if plan.moe is None else replace(plan.moe, split=split),
    )


def text_plan(
    cfg: ModelConfig,
    system: System,
    plan: Plan | None,
    request: Request,
    *,
    policy: Policy,
    command: str,
) -> Comparison:
    """Choose a plan; the comparison has one row, which says whether it fits.

    Args:
        cfg: the model.
        system: the machine.
        plan: the plan to take; None: the fastest.
        request: sequences, and positions of each; a given plan that splits more sequences, or
            shares out more positions, is filled up.
        policy: formats of the weights; one that no chip runs takes as much room as fp16.
        command: the command that asks, named when GPUs are refused.

    Raises:
        LpuError: it is a GPU system, the plan is not legal, or the model has no such
            context.
    """
    system.require_lpu(command)
    held = policy.on_chip
    if plan is not None:
        shares = plan.attention.data
        positions = min(allocated_positions(plan, request.context), cfg.max_position)
        filled = Request(
            batch=-(-request.batch // shares) * shares, context=max(request.context, positions)
        )
        return compare(cfg, system, filled, policy=held, plans=[plan], top=1)

    def one_stage(request: Request) -> Comparison:
        scenario = Scenario(cfg, system, request, policy=held)
        choices = Choices(most_stages=1, pools=False)
        found, _ = find_plans(scenario, choices=choices)
        plans = nearest_plans(scenario, 1, choices) if found is None else found
        return compare(cfg, system, request, policy=held, plans=list(plans), top=1)

    alone = one_stage(Request(context=min(POSITIONS_STEP, cfg.max_position)))
    found = compare(cfg, system, request, policy=held, plans=[alone.rows[0].plan], top=1)
    return found if found.rows[0].fits else one_stage(request)
