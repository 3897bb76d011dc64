"""Quantisation noise of each scheme on normal values, against figures measured elsewhere."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.numerics import quantized
from lpu_jax.numerics.schemes import FP8_BLOCK128, INT4_GROUP32, INT8_COLUMN, MXFP4, NVFP4, SCHEMES


# SQNR in dB of N(0, 1), 1024 x 4096, blocks along the last axis: measured once with independent
# implementations, ±0.1 for another sample (the largest of all values moves int8_tensor by 0.2).
@pytest.mark.first(4)
@pytest.mark.parametrize(
    ("scheme", "decibels", "tolerance"),
    [
        (SCHEMES["fp16"], 73.65, 0.1),
        (SCHEMES["bf16"], 55.59, 0.1),
        (replace(FP8_BLOCK128, block_rows=None, block_columns=None), 31.54, 0.1),
        (SCHEMES["mxfp8_e4m3"], 30.65, 0.1),
        (SCHEMES["mxfp8_e4m3"].with_rule("up"), 31.52, 0.1),
        (SCHEMES["mxfp8_e5m2"], 25.36, 0.1),
        (SCHEMES["mxfp6_e2m3"], 30.94, 0.1),
        (SCHEMES["mxfp6_e3m2"], 25.36, 0.1),
        (MXFP4, 18.79, 0.1),
        (MXFP4.with_rule("up"), 18.76, 0.1),
        (NVFP4, 20.43, 0.1),
        (SCHEMES["mxint8"], 41.66, 0.1),
        (SCHEMES["msfp12"], 18.64, 0.1),
        (SCHEMES["msfp16"], 42.78, 0.1),
        (SCHEMES["int8_tensor"], 38.44, 0.2),
        (INT8_COLUMN, 41.28, 0.1),
        (replace(INT4_GROUP32, block_rows=None), 16.10, 0.1),
        (replace(INT4_GROUP32, block_rows=128), 18.61, 0.1),
        (INT4_GROUP32, 20.26, 0.1),
    ],
    ids=lambda value: f"{value.name}-{value.rule}" if hasattr(value, "rule") else None,
)
def test_signal_to_noise_is_the_published_one(scheme, decibels, tolerance):
    w = normal()
    error = np.asarray(round_trip(w, scheme)) - np.asarray(w)
    power = np.square(np.asarray(w)).sum(dtype=np.float64)
    found = 10 * np.log10(power / np.square(error).sum(dtype=np.float64))
    assert abs(found - decibels) <= tolerance, found


@functools.cache
def normal():
    return jnp.asarray(np.random.default_rng(0).standard_normal((1024, 4096), np.float32))


@functools.partial(jax.jit, static_argnums=1)
def round_trip(w, scheme):
    return quantized.dequantize(quantized.quantize(w, scheme, -1))
