"""Products of int8 codes that the scales of rows and columns follow: MXM and VXM together."""

import numpy as np
from jaxtyping import Array, Float32

from ..arguments import checked
from ..errors import LpuError
from ..numerics import quantized
from ..numerics.quantized import QuantizedArray, output_scale
from . import mxm, vxm

#: Smallest row maximum that rows are scaled by: a row of zeros stays zero (assumed).
SMALLEST_MAXIMUM = 1e-30


@checked
def int8_product(x: Float32[Array, "*rows k"], w: QuantizedArray) -> Float32[Array, "..."]:
    """Multiply rows, rounded to int8, by bare int8 codes, and the exact sums by both scales.

    Args:
        x: rows; each is scaled by `max |x| / 127`.
        w: weights with one scale per column or matrix (`Scheme.multiplies_bare`).

    Raises:
        LpuError: weights of another scheme.

    Fidelity:
        Rows are rounded once (RNE), sums are exact; two roundings of scales and two of products.

    Source:
        Symmetric int8: Abts et al., ISCA 2020; that rows are scaled as they are made is assumed.
    """
    quantized.check_operand(w)
    if not w.scheme.multiplies_bare:
        raise LpuError(
            f"scaled.int8_product: w of scheme {w.scheme.name} was given; it must be int8 codes "
            "with one scale per column or matrix."
        )
    column_scales = output_scale(w, of_codes=True)
    assert column_scales is not None
    largest = vxm.maximum(vxm.max_lanes(vxm.absolute(x)), SMALLEST_MAXIMUM)
    codes = vxm.to_int8(vxm.mul(x, vxm.div(127.0, largest)))
    y = vxm.to_fp32(mxm.matmul(codes, w))
    return vxm.mul(vxm.mul(y, vxm.mul(largest, float(np.float32(1 / 127)))), column_scales)
