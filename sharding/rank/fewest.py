"""The smallest part of a machine on which a model fits, as a machine of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num

from lpu_jax.errors import LpuError, unknown
from lpu_jax.machine.mixed import Machine
from lpu_jax.quantities import format_bytes
from models.config import ModelConfig
from models.policy import Policy

from ..plan import Plan
from ..request import NEXT_TOKEN, Request
from ..scenario import check_policy, scenario
from ..search.fewest import smallest_part
from ..search.find import INVARIANT


def on_fewest_chips(
    model: str | Path | ModelConfig,
    system: str | Path | Machine,
    request: Request = NEXT_TOKEN,
    *,
    policy: str | Policy = "fp16",
    draft_model: str | Path | ModelConfig | None = None,
    draft_plan: Plan | None = None,
    expert_shares: Sequence[float] | Num[np.ndarray, " experts"] | None = None,
    invariant: str = "off",
) -> Machine:
    """Find the smallest part of a machine on which some plan fits.

    Args:
        model: as for `compare`.
        system: the whole machine.
        request: what a step does.
        policy: name of a precision policy, or a policy.
        draft_model: as for `compare`; it must fit too.
        draft_plan: as for `compare`.
        expert_shares: as for `compare`.
        invariant: as for `compare`: only such plans count.

    Returns:
        The machine's first chips, as few as are enough; of a mixed system those of either.

    Raises:
        LpuError: an unknown name or an impossible number, or not even the whole machine is enough.
    """
    asked = scenario(
        model,
        system,
        request,
        policy=policy,
        draft_model=draft_model,
        draft_plan=draft_plan,
        expert_shares=expert_shares,
    )
    check_policy(asked.policy, asked.model, asked.system)
    if invariant not in INVARIANT:
        raise unknown("invariant", str(invariant), INVARIANT)
    part = smallest_part(asked, INVARIANT[invariant])
    if part is None:
        whole = asked.machine
        beside = "" if asked.draft is None else f" beside draft model {asked.draft.model.name}"
        raise LpuError(
            f"{asked.model.name} fits{beside} on no number of the {whole.n_chips} chips of "
            f"{whole.name}, {format_bytes(whole.memory_bytes)} of {whole.memory_name} in all."
        )
    return part
