"""Wrong conventions of Ling 3: bounded decays of full rank, gates of latent attention's heads.

`wrong_conventions` has those of the other families; what each does to logits is in
`oracle/test_mutations.py`.
"""

import numpy as np
from changes import in_part
from mistakes import Arrays, Mistake

from models.layers import recurrent
from models.reference_recurrence import DeltaNet


def _swapped(arrays: Arrays) -> Arrays:
    """Take what decays come of for gates, and the other way round."""
    if "f" not in arrays:
        return arrays
    value, gate = np.moveaxis(arrays["vz"], 1, 0)
    return arrays | {"f": gate, "vz": np.stack((value, arrays["f"]), 1)}


LING: dict[str, Mistake] = {
    "ling3: decays without a bound": Mistake(
        model="bailing_hybrid", config=in_part("recurrent", decay_bound=None)
    ),
    "ling3: another bound of decays": Mistake(
        model="bailing_hybrid", config=in_part("recurrent", decay_bound=-1.0)
    ),
    "ling3: fading outside of the sigmoid": Mistake(
        model="bailing_hybrid",
        reference=(
            (
                (DeltaNet, "_decay"),
                "bound * jax.nn.sigmoid(fading * fade)",
                "bound * fading * jax.nn.sigmoid(fade)",
            ),
        ),
        layers=(
            (
                recurrent._of_channels,
                "vxm.mul(vxm.sigmoid(vxm.mul(a, fading)), ",
                "vxm.mul(vxm.mul(vxm.sigmoid(a), fading), ",
            ),
        ),
    ),
    "ling3: decays and gates swapped": Mistake(model="bailing_hybrid", arrays=_swapped),
    "ling3: heads of latent attention not gated": Mistake(
        model="bailing_hybrid", config=in_part("attention", gated=False)
    ),
    "ling3: halves turned instead of neighbours": Mistake(
        model="bailing_hybrid", config=in_part("rope", interleaved=False)
    ),
}
