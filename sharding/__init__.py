"""Sharding plans: which split of a transformer over LPU chips is legal, fits, and is fast.

The wings, from a plan to its answer: `predict` (time and memory), `rank` (which plan wins),
`detail` (one plan in full), `run` (values on chips), `verify` (values beside float32), `validate`
(published figures), `cli` (the commands).
"""

from typing import TYPE_CHECKING

import lpu_jax as _lpu_jax
import models as _models
from lpu_jax.packages import check_one_root, exports

if TYPE_CHECKING:
    from models.layers.dispatch import Dispatch
    from models.layers.linear import Split

    from .detail.explain import explain
    from .plan import AttentionShard, MlpShard, MoeShard, Plan
    from .plan_file import read_plan
    from .rank.compare import compare
    from .rank.curve import curve
    from .rank.sensitivity import sensitivity
    from .request import Request, decode_request
    from .run.forward import forward
    from .run.generate import generate
    from .scenario import Scenario
    from .verify.chosen_layers import check
    from .verify.whole_model import check_whole

check_one_root(_models, beside=_lpu_jax)

__all__ = [
    "AttentionShard",
    "Dispatch",
    "MlpShard",
    "MoeShard",
    "Plan",
    "Request",
    "Scenario",
    "Split",
    "check",
    "check_whole",
    "compare",
    "curve",
    "decode_request",
    "explain",
    "forward",
    "generate",
    "read_plan",
    "sensitivity",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "AttentionShard": "plan",
        "Dispatch": "plan",
        "MlpShard": "plan",
        "MoeShard": "plan",
        "Plan": "plan",
        "Request": "request",
        "Scenario": "scenario",
        "Split": "plan",
        "check": "verify.chosen_layers",
        "check_whole": "verify.whole_model",
        "compare": "rank.compare",
        "curve": "rank.curve",
        "decode_request": "request",
        "explain": "detail.explain",
        "forward": "run.forward",
        "generate": "run.generate",
        "read_plan": "plan_file",
        "sensitivity": "rank.sensitivity",
    },
)
