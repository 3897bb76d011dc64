"""The plan that is taken if none is given, and what a plan promises of its bits.

For running a whole model on text, all chips form one group: stages change no value. The fastest
plan is then that for a single short sequence, so that a text's bits do not depend on what else is
asked for, as long as it fits.
"""

from collections.abc import Sequence
from dataclasses import replace

from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import PlanError
from lpu_jax.machine.system import System
from models.blocks import block_kinds
from models.config import ModelConfig
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import Policy

from ..axes import allocated_positions, shard_of
from ..legal import Search, one_stage_plans
from ..plan import Plan
from ..predict.evaluate import evaluate
from ..request import NEXT_TOKEN, Request
from ..scenario import Scenario, check_policy
from .compare import compare
from .comparison import Comparison


def fastest_plan(cfg: ModelConfig, system: System, *, policy: Policy) -> tuple[Plan, str]:
    """Choose the fastest plan that fits, or else the one that lacks the least memory.

    A model that is too small for the groups of the machine is split over fewer chips.

    Returns:
        The plan, and a sentence if it does not fit, or leaves chips idle with nothing left to
        split; else an empty one.

    Raises:
        LpuError: as `compare`.
    """
    held = policy.on_chip
    check_policy(held, cfg, system)
    request = Request(context=min(POSITIONS_STEP, cfg.max_position))
    search = Search(Scenario(cfg, system, request, policy=held)).within_reach()
    plans = None if search.most_group_chips is None else list(search.plans())
    row = compare(cfg, system, request, policy=held, plans=plans, top=1).rows[0]
    notes = []
    if plans is not None:
        notes.append(
            f"{cfg.name} is too small to be split over the {system.n_chips} chips of "
            f"{system.name}; a plan in groups of at most {search.most_group_chips} is run."
        )
    if not row.fits:
        notes.append(f"No plan fits; the nearest is run: it {row.reason}.")
    return row.plan, " ".join(notes)


def default_plans(cfg: ModelConfig, system: System, *, policy: Policy) -> list[Plan]:
    """Choose three plans: two split by columns with different degrees, and one split by rows.

    Args:
        cfg: the model.
        system: the machine.
        policy: formats of the weights.

    Returns:
        The fastest plan split by columns that fits (or that lacks least), one like it with other
        degrees, and the first one's degrees split by rows.

    Raises:
        LpuError: it is a GPU system.
        PlanError: the machine has no two different splits of a group.
    """
    system.require_lpu("check")
    policy = policy.on_chip
    check_policy(policy, cfg, system)
    request = Request(context=min(cfg.max_position, NEXT_TOKEN.context))
    scenario = Scenario(cfg, system, request, policy=policy)
    plans = list(Search(scenario).within_reach().plans())
    evaluation = evaluate(plans, scenario)
    order = sorted(
        range(len(plans)),
        key=lambda i: (max(evaluation.short_bytes[i], 0.0), evaluation.latency_cycles[i]),
    )
    by_column = [
        plans[i] for i in order if promises_one_chip_bits(plans[i]) and _splits_all(plans[i], cfg)
    ]
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
    """Whether a plan gives the bits of one chip, for every model that it can run.

    It does if every output projection is split by columns; one that is not split at all counts
    too. A split by rows rounds partial sums, an exchange of rows adds the shared expert's
    result in another place, and some axes, such as a context that chips share out, round whatever
    the split.
    """
    if plan.moe is not None and plan.moe.dispatch is Dispatch.ALL_TO_ALL:
        return False
    return not any(shard.moving_axes or shard.split is Split.ROW for shard in plan.parts.values())


def _splits_all(plan: Plan, cfg: ModelConfig) -> bool:
    """Whether a plan splits every kind of block that the model has."""
    shards = (shard_of(plan, kind) for kind in block_kinds(cfg))
    return all(shard.output_ways > 1 for shard in shards if shard is not None)


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

    def fastest(plans: Sequence[Plan], request: Request) -> Comparison:
        return compare(cfg, system, request, policy=held, plans=plans, top=1)

    def one_stage(request: Request) -> Comparison:
        scenario = Scenario(cfg, system, request, policy=held)
        return fastest(one_stage_plans(scenario), request)

    if plan is None:
        alone = Request(context=min(POSITIONS_STEP, cfg.max_position))
        found = fastest([one_stage(alone).rows[0].plan], request)
        return found if found.rows[0].fits else one_stage(request)
    shares = plan.attention.data
    filled = max(request.context, min(allocated_positions(plan, request.context), cfg.max_position))
    return fastest([plan], Request(batch=-(-request.batch // shares) * shares, context=filled))
