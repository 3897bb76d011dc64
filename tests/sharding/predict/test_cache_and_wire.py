"""What formats of the cache and of partial sums do to bytes and time, against counts by hand."""

import pytest

from sharding import Plan
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.request import Request
from sharding.scenario import scenario

#: Llama 3.1 8B on one group of eight: a hidden state of 4,096 values is summed twice in each of 32
#: layers; the embedding's row once more, in float16 whatever the wire.
ROW, COLUMN = "8x8 a:8t f:8t row", "8x8 a:8t f:8t column"
SUMS = 2 * 32 * 4096


def found(name: str, policy: str, system: str = "lpx-rack", context: int = 4096) -> Evaluation:
    asked = scenario("llama-3.1-8b", system, Request(context=context), policy=policy)
    return evaluate([Plan.parse(name)], asked)


@pytest.mark.parametrize(
    ("wire", "size"), [("bf16", 2), ("fp8", 8.25 / 8), ("fp32", 4), ("exact", 16)]
)
def test_partial_sums_take_the_bytes_of_the_wire(wire: str, size: float) -> None:
    plain, other = found(ROW, "int8"), found(ROW, f"int8+{wire}-wire")
    assert other.wire_bytes[0] - plain.wire_bytes[0] == (size - 2) * SUMS
    assert other.latency_s[0] != plain.latency_s[0]
    assert other.cache_bytes[0] == plain.cache_bytes[0]


@pytest.mark.parametrize(
    ("wire", "size"), [("bf16", 2), ("fp8", 8.25 / 8), ("fp32", 4), ("exact", 16)]
)
def test_partial_sums_of_gpus_take_the_bytes_of_the_wire(wire: str, size: float) -> None:
    """An array that holds fp32 numbers is no wider on NVLink than the format it crosses in."""
    name = "1x8 a:8t f:8t row"
    plain, other = (found(name, p, "h100x8") for p in ("int8", f"int8+{wire}-wire"))
    assert other.wire_bytes[0] - plain.wire_bytes[0] == (size - 2) * SUMS


def test_what_is_only_copied_crosses_as_it_is() -> None:
    plain, other = found(COLUMN, "int8"), found(COLUMN, "int8+fp8-wire")
    assert other.wire_bytes[0] == plain.wire_bytes[0]
    assert other.latency_s[0] == plain.latency_s[0]


@pytest.mark.parametrize(
    ("cache", "bits"), [("fp8-head", 8 + 32 / 128), ("mxfp8", 8.25), ("nvfp4", 4.5)]
)
def test_codes_and_scales_lie_in_dram_and_are_read_from_it(cache: str, bits: float) -> None:
    name = "16x16 a:16t f:16t row"
    wide, narrow = (found(name, p, "lpx-rack-dram") for p in ("int8", f"int8+{cache}-cache"))
    assert narrow.dram_bytes[0] == pytest.approx(wide.dram_bytes[0] * bits / 16, rel=1e-12)
    held = [float(one.blocks["attention"].held.dram_cache[0]) for one in (wide, narrow)]
    saved = 32 * (held[0] - held[1]) / 9.6e9  # a chip's share of the DRAM's rate
    # The reading of a cache dominates; what else is done to a token's own vectors is 1 % of it.
    gain = wide.latency_s[0] - narrow.latency_s[0]
    assert gain == pytest.approx(saved, rel=0.01)


def test_in_sram_it_holds_more_and_a_conversion_is_added() -> None:
    wide, narrow = (found(ROW, policy) for policy in ("int8", "int8+mxfp8-cache"))
    assert narrow.cache_bytes[0] == pytest.approx(wide.cache_bytes[0] * 8.25 / 16)
    assert narrow.latency_s[0] > wide.latency_s[0]
