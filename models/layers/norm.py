"""RMS normalisation."""

import numpy as np
from jaxtyping import Array, Float32

from lpu_jax.datapath import vxm


def rms_norm(
    x: Float32[Array, "m d"], weight: Float32[Array, " d"], eps: float
) -> Float32[Array, "m d"]:
    """Normalise rows: `x * rsqrt(mean(x^2) + eps) * weight`.

    Fidelity: approximate, order-dependent: the sum of squares is in the order of `vxm.sum_lanes`.
    """
    d_model = x.shape[-1]
    mean = vxm.mul(vxm.sum_lanes(vxm.mul(x, x)), float(np.float32(1 / d_model)))
    scale = vxm.rsqrt(vxm.add(mean, eps))
    return vxm.mul(vxm.mul(x, scale), weight.reshape(1, d_model))
