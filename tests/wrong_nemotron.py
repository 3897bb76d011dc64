"""Wrong conventions of Nemotron-H: Mamba2, MLPs without gates, experts in a narrower space.

`wrong_conventions` has those of the other families; what each does to logits is in
`oracle/test_mutations.py`.
"""

import numpy as np
from changes import in_array, in_model, in_part
from mistakes import Arrays, Mistake

from models.layers import mlp, recurrent
from models.reference_mixture import activated
from models.reference_recurrence import Mamba2


def _swapped(arrays: Arrays) -> Arrays:
    """Take queries for keys, with their taps and biases."""
    at = {"qk": 1, "qk_taps": 1, "qk_taps_bias": 0}
    return arrays | {n: np.flip(arrays[n], axis) for n, axis in at.items() if n in arrays}


def _unbiased(arrays: Arrays) -> Arrays:
    return arrays | {n: np.zeros_like(arrays[n]) for n in arrays if n.endswith("taps_bias")}


NEMOTRON: dict[str, Mistake] = {
    "recurrence: B and C swapped": Mistake(
        model="nemotron_h",
        arrays=_swapped,
    ),
    "recurrence: gates and values of mamba2 swapped": Mistake(
        model="nemotron_h", arrays=in_array("vz", lambda vz: vz[:, ::-1])
    ),
    "recurrence: values not multiplied by their step": Mistake(
        model="nemotron_h",
        reference=(
            (
                (Mamba2, "__call__"),
                'rearrange(step, "b t k g -> b t (k g)")',
                'jnp.ones_like(rearrange(step, "b t k g -> b t (k g)"))',
            ),
        ),
        layers=((recurrent._steps, "_by_token(steps, sizes)", "_by_token(steps, sizes) * 0 + 1"),),
    ),
    "recurrence: steps not kept from their limit": Mistake(
        model="nemotron_h", config=in_part("recurrent", least_step=0.0)
    ),
    "recurrence: bias of steps dropped": Mistake(
        model="nemotron_h", arrays=in_array("fading_bias", np.zeros_like)
    ),
    "recurrence: biases of convolutions dropped": Mistake(
        model="nemotron_h",
        arrays=_unbiased,
    ),
    "recurrence: skip of values dropped": Mistake(
        model="nemotron_h", arrays=in_array("skip", np.zeros_like)
    ),
    "recurrence: results corrected as by the delta rule": Mistake(
        model="nemotron_h",
        reference=(((Mamba2, "__call__"), "corrects=False", "corrects=True"),),
        layers=((recurrent.recurrent_layer, 'corrects=net.rule == "delta"', "corrects=True"),),
    ),
    "recurrence: gate of mamba2 behind the norm": Mistake(
        model="nemotron_h",
        reference=(
            (
                (Mamba2, "__call__"),
                "self._normed(read * jax.nn.silu(gate))",
                "self._normed(read) * jax.nn.silu(gate)",
            ),
        ),
    ),
    "recurrence: heads of mamba2 normalised one by one": Mistake(
        model="nemotron_h",
        reference=(((Mamba2, "_normed"), "axis=(-2, -1)", "axis=-1"),),
    ),
    "recurrence: all heads of mamba2 normalised together": Mistake(
        model="nemotron_h",
        reference=(((Mamba2, "_normed"), "axis=(-2, -1)", "axis=(-3, -2, -1)"),),
    ),
    "rope: attention of nemotron turned": Mistake(
        model="nemotron_h",
        config=in_model(
            single_blocks=("recurrent", "dense", "attention", "dense", "recurrent"),
        ),
    ),
    "experts: latent rows taken for scaled ones": Mistake(
        model="nemotron_h_moe", arrays=in_array("latent_out", lambda x: x * np.float32(2.5))
    ),
    "experts: not squared": Mistake(
        model="nemotron_h_moe",
        reference=(
            (
                activated,
                "jnp.square(jnp.maximum(both[:, :, 0], 0.0))",
                "jnp.maximum(both[:, :, 0], 0.0)",
            ),
        ),
        layers=((mlp.activated, "vxm.mul(above, above)", "above"),),
    ),
    "experts: scaling of nemotron dropped": Mistake(
        model="nemotron_h_moe", config=in_part("moe", routed_scaling=1.0)
    ),
    "experts: shared one of nemotron left out": Mistake(
        model="nemotron_h_moe", config=in_part("moe", n_shared=0)
    ),
    "dense: squares of what is below zero too": Mistake(
        model="nemotron_h",
        reference=((activated, "jnp.maximum(both[:, :, 0], 0.0)", "both[:, :, 0]"),),
        layers=((mlp.activated, "vxm.maximum(gate_up, 0.0)", "gate_up"),),
    ),
}
