"""Rows with scales against ml_dtypes, one vector at a time; their products; their cost by hand."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.datapath import block_scales, mxm
from lpu_jax.datapath.primitive import DEFINITIONS
from lpu_jax.datapath.work import Call, Operand
from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import FP8_BLOCK128, INT8_COLUMN, NVFP4, Scheme
from models.cache_formats import cache_scheme, stored_bits

FORMATS = ("fp8-head", "mxfp8", "nvfp4")
#: Heads of whole blocks, one whose last block is shorter, and a latent with its key.
WIDTHS = (64, 80, 576)


def scheme_of(name: str, width: int) -> Scheme:
    scheme = cache_scheme(name, width)  # type: ignore[arg-type]
    assert scheme is not None
    return scheme


def rows(width: int) -> np.ndarray:
    """Vectors of very different sizes, one of zeros."""
    rng = np.random.default_rng(width)
    x = rng.normal(size=(2, 3, 5, width)) * np.exp2(rng.integers(-12, 9, (2, 3, 5, 1)))
    x[0, 0, 0] = 0
    return x.astype(np.float32)


def by_ml_dtypes(vector: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one vector as numbers: `amax / largest code`, or a power of two."""
    block = {"fp8-head": len(vector), "mxfp8": 32, "nvfp4": 16}[name]
    codes, scales = [], []
    for first in range(0, len(vector), block):
        part = vector[first : first + block]
        amax = np.abs(part).max()
        if name == "mxfp8":
            scale = np.float32(2.0) ** (np.floor(np.log2(amax)) - 8 if amax else -127)
            code = np.clip(part / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        else:
            largest = np.float32(448 if name == "fp8-head" else 6)
            scale = amax / largest
            if name == "nvfp4":
                scale = np.minimum(scale, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
                scale = scale.astype(np.float32)
            quotient = np.clip(part / (scale or np.float32(np.inf)), -largest, largest)
            is_fp8 = name == "fp8-head"
            code = quotient.astype(ml_dtypes.float8_e4m3fn if is_fp8 else ml_dtypes.float4_e2m1fn)
        codes.append(code.astype(np.float32))
        scales.append(scale)
    return np.concatenate(codes), np.asarray(scales, np.float32)


def numbers(made: QuantizedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored codes and scales as numbers."""
    codes, scales = np.asarray(made.codes), np.asarray(made.scales)
    if name == "nvfp4":
        codes = codes.view(ml_dtypes.float4_e2m1fn)
    if name == "mxfp8":
        scales = scales.view(ml_dtypes.float8_e8m0fnu)
    return codes.astype(np.float32), scales.astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", WIDTHS)
def test_codes_and_scales_are_those_of_each_vector_alone(name: str, width: int) -> None:
    x = rows(width)
    made = block_scales.quantize_rows(jnp.asarray(x), scheme_of(name, width))
    codes, scales = numbers(made, name)
    for at in np.ndindex(x.shape[:-1]):
        expected = by_ml_dtypes(x[at], name)
        np.testing.assert_array_equal(codes[at], expected[0], err_msg=str(at))
        np.testing.assert_array_equal(scales[at], expected[1], err_msg=str(at))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_values_multiply_as_their_widened_numbers(name: str) -> None:
    """Blocks along the columns of an operand: code times scale, rounded once to float16."""
    values = rows(80)[0, :, :].reshape(15, 80)
    made = block_scales.quantize_rows(jnp.asarray(values), scheme_of(name, 80))
    block = {"fp8-head": 80, "mxfp8": 32, "nvfp4": 16}[name]
    codes, scales = numbers(made, name)
    wide = codes.astype(np.float64) * np.repeat(scales, block, axis=1)[:, :80].astype(np.float64)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 15)), jnp.float16)
    expected = mxm.matmul(x, jnp.asarray(wide.astype(np.float16)))
    np.testing.assert_array_equal(mxm.matmul(x, made), expected)


def test_stored_bits_count_codes_and_scales() -> None:
    found = {
        (name, width): stored_bits(scheme_of(name, width), width)
        for name in FORMATS
        for width in WIDTHS
    }
    assert found["fp8-head", 64] == 8 + 32 / 64
    assert found["mxfp8", 64] == 8.25
    assert found["mxfp8", 80] == 8 + 3 * 8 / 80  # the last block is shorter, and has a scale too
    assert found["nvfp4", 576] == 4.5


def test_the_cost_is_a_fold_of_each_block_and_what_every_value_passes() -> None:
    machine = one_group(system("groq-node"), 1)
    x = Operand(shape=(4, 160), dtype="float32")
    call = Call(operands=(x,), results=(x, x), params={"scheme": scheme_of("mxfp8", 160)})
    rule = next(d.cost for d in DEFINITIONS.values() if d.name == "vxm_quantize_rows")
    assert rule is not None
    work = rule(machine, call)
    # Two vectors, 32 lanes a block: five rotations of 9 cycles, one vector in each hemisphere. A
    # quotient is a root and four operations; beside it a magnitude, a product, two conversions.
    roots = GROQCHIP1.special_passes("rsqrt")
    alus = 2 * (8 + roots) / 16
    large = 2 * roots / GROQCHIP1.vxm_large_alus_per_lane
    assert work.busy_cycles == 5 * (GROQCHIP1.lane_rotate_cycles + 1 - 1) + max(alus, large, 2 / 8)


@pytest.mark.parametrize("scheme", [NVFP4, FP8_BLOCK128])
def test_a_scheme_that_scales_more_than_one_row_is_refused(scheme: Scheme) -> None:
    with pytest.raises(LpuError, match=f"scheme {scheme.name} was given; it must have scales of"):
        block_scales.quantize_rows(jnp.ones((2, 128), jnp.float32), scheme)


def test_int8_codes_with_scales_of_rows_are_no_operand() -> None:
    made = QuantizedArray(
        codes=jnp.ones((4, 8), jnp.int8),
        scales=jnp.ones((4, 1), jnp.float32),
        scheme=INT8_COLUMN,
        axis=-1,
    )
    with pytest.raises(LpuError, match="int8 codes with scales along axis -1 were given"):
        mxm.matmul(jnp.ones((2, 4), jnp.float16), made)
