"""The plan for running a whole model on text: the one given, or the fastest of one stage.

Stages change no value, and a model is emulated on one group of chips; so all chips form one. The
fastest is that for a single short sequence: a text's bits then do not depend on what else is asked
for, as long as it fits.
"""

from collections.abc import Sequence

from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.machine.system import System
from models.config import ModelConfig
from models.policy import FP16, Policy

from ..axes import Request, allocated_positions
from ..legal import one_stage_plans
from ..plan import Plan
from .compare import compare
from .comparison import Comparison


def text_plan(
    cfg: ModelConfig,
    system: System,
    plan: Plan | None,
    policy: Policy,
    *,
    command: str,
    batch: int = 1,
    context: int,
) -> Comparison:
    """Choose a plan; the comparison has one row, which says whether it fits.

    Args:
        cfg: the model.
        system: the machine.
        plan: to take this one.
        policy: formats of the weights; one that no chip runs takes the room of fp16.
        command: who asks, for the sentence that refuses GPUs.
        batch: sequences; a given plan that splits more of them is filled up.
        context: positions of each; a given plan that shares out more of them is filled up too.

    Raises:
        LpuError: the system is one of GPUs, the plan is not legal, or the model has no such
            context.
    """
    system.require_lpu(command)
    held = policy if policy.base == "fp16" else FP16

    def fastest(plans: Sequence[Plan], request: Request) -> Comparison:
        return compare(
            cfg,
            system,
            plans,
            weights_format=held,
            batch=request.batch,
            context=request.context,
            top=1,
        )

    alone = Request(batch=1, context=min(POSITIONS_STEP, cfg.max_position))
    wanted = Request(batch=batch, context=context)
    if plan is None:
        (row,) = fastest(one_stage_plans(cfg, system, held, alone), alone).rows
        plan = row.plan
        found = fastest([plan], wanted)
        if found.rows[0].fits:
            return found
        return fastest(one_stage_plans(cfg, system, held, wanted), wanted)
    shares = plan.attention.data
    filled = max(context, min(allocated_positions(plan, context), cfg.max_position))
    return fastest([plan], Request(batch=-(-batch // shares) * shares, context=filled))
