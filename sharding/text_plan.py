"""The plan for running a whole model on text: the one given, or the fastest of one stage.

Stages change no value, and a model is emulated on one group of chips; so all chips form one.
"""

from lpu_jax.system import System
from models.config import ModelConfig
from models.policy import FP16, Policy

from .axes import Request
from .compare import compare
from .comparison import Comparison
from .legal import one_stage_plans
from .plan import Plan


def text_plan(
    cfg: ModelConfig,
    system: System,
    plan: Plan | None,
    policy: Policy,
    *,
    batch: int = 1,
    context: int,
) -> Comparison:
    """Choose a plan; the comparison has one row, which says whether it fits.

    Args:
        cfg: the model.
        system: the machine.
        plan: to take this one.
        policy: formats of the weights; one that no chip runs takes the room of fp16.
        batch: sequences; a given plan that splits more of them is filled up.
        context: positions of each.

    Raises:
        LpuError: the system is one of GPUs, the plan is not legal, or the model has no such
            context.
    """
    system.require_lpu("text")
    held = policy if policy.base == "fp16" else FP16
    request = Request(batch=batch, context=context)
    if plan is not None:
        shares = plan.attention.data
        request = Request(batch=-(-batch // shares) * shares, context=context)
    plans = one_stage_plans(cfg, system, held, request) if plan is None else [plan]
    return compare(
        cfg,
        system,
        plans,
        weights_format=held.name,
        batch=request.batch,
        context=context,
        top=1,
    )
