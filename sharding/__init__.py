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
    from .partition import mesh_axes, partition_specs
    from .plan import AttentionShard, MlpShard, MoeShard, Plan, Pool
    from .plan_file import read_plan
    from .rank.compare import compare
    from .rank.curve import curve
    from .rank.sensitivity import sensitivity
    from .rank.sweep import sweep
    from .rank.sweep_result import SweepInterrupted
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
    "Pool",
    "Request",
    "Scenario",
    "Split",
    "SweepInterrupted",
    "check",
    "check_whole",
    "compare",
    "curve",
    "decode_request",
    "explain",
    "forward",
    "generate",
    "mesh_axes",
    "partition_specs",
    "read_plan",
    "sensitivity",
    "sweep",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "AttentionShard": "plan",
        "Dispatch": "plan",
        "MlpShard": "plan",
        "MoeShard": "plan",
        "Pool": "plan",
        "Plan": "plan",
        "Request": "request",
        "Scenario": "scenario",
        "Split": "plan",
        "SweepInterrupted": "rank.sweep_result",
        "check": "verify.chosen_layers",
        "check_whole": "verify.whole_model",
        "compare": "rank.compare",
        "curve": "rank.curve",
        "decode_request": "request",
        "explain": "detail.explain",
        "forward": "run.forward",
        "generate": "run.generate",
        "mesh_axes": "partition",
        "partition_specs": "partition",
        "read_plan": "plan_file",
        "sensitivity": "rank.sensitivity",
        "sweep": "rank.sweep",
    },
)
