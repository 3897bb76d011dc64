"""Wrong conventions of Kimi K3: attention residuals, SiTU, and what else its layers have.

`wrong_conventions` has those of the other families; what each does to logits is in
`oracle/test_mutations.py`.
"""

import dataclasses

import numpy as np
from changes import in_array, in_model, in_part
from mistakes import Arrays, Mistake

from models.config import ModelConfig, Situ
from models.depth import NORM, STATES
from models.layers import depth
from models.reference_depth import Depth


def _activated(activation: str, situ: Situ | None) -> "dict[str, object]":
    """Change the activation of dense MLPs and of experts."""

    def changed(cfg: ModelConfig) -> ModelConfig:
        moe = dataclasses.replace(cfg.moe, activation=activation, situ=situ)
        return dataclasses.replace(cfg, activation=activation, situ=situ, moe=moe)

    return {"model": "kimi_k3", "config": changed}


def _reads_running(arrays: Arrays) -> Arrays:
    """Let a layer that begins a block read the sum that is still empty."""
    if STATES not in arrays:
        return arrays
    return arrays | {STATES: np.repeat(arrays[STATES][1:], 2)}


def _blocks_of_all(arrays: Arrays) -> Arrays:
    """Add what all layers add to one sum."""
    if STATES not in arrays:
        return arrays
    return arrays | {STATES: np.minimum(arrays[STATES], 1)}


KIMI_K3: dict[str, Mistake] = {
    "kimi k3: what layers add is added up": Mistake(
        model="kimi_k3", config=in_model(residual_block=None)
    ),
    "kimi k3: one block of all layers": Mistake(model="kimi_k3", arrays=_blocks_of_all),
    "kimi k3: an empty sum is read": Mistake(model="kimi_k3", arrays=_reads_running),
    "kimi k3: states are not normalised as keys": Mistake(
        model="kimi_k3",
        reference=(
            (
                (Depth, "given"),
                "self.norm(read)",
                "(read * self.norm.weight[...][None, None, None])",
            ),
        ),
        layers=(
            (
                depth.mean_of_states,
                "vxm.mul(vxm.sum_lanes(vxm.mul(rows, query)), rms_scale(rows, cfg.norm_eps))",
                "vxm.sum_lanes(vxm.mul(rows, query))",
            ),
        ),
    ),
    "kimi k3: weights of keys dropped": Mistake(
        model="kimi_k3", arrays=in_array(NORM, np.ones_like)
    ),
    "kimi k3: up projections without a limit": Mistake(
        **_activated("situ", Situ(limit=1.2, up_limit=None))
    ),
    "kimi k3: SiLU instead of SiTU": Mistake(**_activated("silu", None)),
    "kimi k3: sums over experts not normalised": Mistake(
        model="kimi_k3", config=in_part("moe", latent_norm=False)
    ),
    "kimi k3: decays without a bound": Mistake(
        model="kimi_k3", config=in_part("recurrent", decay_bound=None)
    ),
    "kimi k3: values of latent attention not gated": Mistake(
        model="kimi_k3", config=in_part("attention", gates_values=False)
    ),
    "kimi k3: eps of other classes in latent norms": Mistake(
        model="kimi_k3", config=in_part("attention", latent_norm_eps=1e-6)
    ),
}
