"""The network between LPUs and GPUs: by hand from the published 100G, laws, and wrong numbers."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import config

from lpu_jax.errors import ConfigError
from lpu_jax.machine.pool_link import LINKS, WIRE_BITS, PoolLink
from lpu_jax.machine.uncertainty import draw, uncertain
from lpu_jax.provenance import constants_of

#: Rates are products and quotients of a few floats.
CLOSE = 1e-12


def link(**numbers: Any) -> PoolLink:
    """A network without latencies and headers, but for what a test is about."""
    bare = {"efficiency": 1.0, "latency_s": 1e-30, "dram_latency_s": 1e-30}
    return dataclasses.replace(PoolLink(), **(bare | numbers))


def test_one_lane_takes_a_hidden_state_as_100_gigabits_do() -> None:
    """7,168 values of 16 bits are 114,688 bits: 1.14688 us at 100 Gb/s."""
    n_bytes = 7168 * PoolLink().wire_value_bits // 8
    assert link().transfer_s(n_bytes, 1, 72) == pytest.approx(1.14688e-6, rel=CLOSE)
    # With 95 % of the rate, and the latency before it.
    whole = PoolLink().transfer_s(n_bytes, 1, 72)
    assert whole == pytest.approx(3e-6 + 1.14688e-6 / 0.95, rel=CLOSE)


def test_bytes_are_spread_over_lanes_and_ports_and_the_slower_end_counts() -> None:
    """256 lanes of 100 Gb/s are 3.2 TB/s; 8 ports of 400 Gb/s are 0.4, 72 of 1.6 Tb/s 14.4."""
    assert link().lpus_bytes_per_s(256) == pytest.approx(3.2e12, rel=CLOSE)
    assert LINKS["h100"].gpus_bytes_per_s(8) == pytest.approx(0.95 * 4e11, rel=CLOSE)
    assert LINKS["h100"].lpus_bytes_per_s(256) == pytest.approx(0.95 * 3.2e12, rel=CLOSE)
    beside_h100 = dataclasses.replace(LINKS["h100"], efficiency=1.0, latency_s=1e-30)
    assert beside_h100.transfer_s(4e11, 256, 8) == pytest.approx(1.0, rel=CLOSE)
    assert link().gpus_bytes_per_s(72) == pytest.approx(14.4e12, rel=CLOSE)
    assert link().transfer_s(3.2e12, 256, 72) == pytest.approx(1.0, rel=CLOSE)


def test_the_port_of_an_fpga_may_be_slower_than_its_lanes() -> None:
    """At 50 GB/s a port, 4 lanes fill it; a ninth LPU brings another FPGA, and only its lane."""
    slow = link(fpga_port_bytes_per_s=50e9)
    lpus = np.array([1, 4, 8, 9, 12, 16])
    expected = 12.5e9 * np.array([1, 4, 4, 8, 8, 8])
    assert slow.fpgas(lpus).tolist() == [1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(slow.lpus_bytes_per_s(lpus), expected, rtol=CLOSE)


def test_dram_is_bound_by_lanes_or_by_its_own_rate() -> None:
    """One LPU reads at 12.5 GB/s, eight at the 76.8 of their FPGA; a rack has 32 x 256 GB."""
    seconds = link().dram_transfer_s(76.8e9, np.array([1, 8, 16]))
    np.testing.assert_allclose(seconds, [76.8 / 12.5, 1.0, 0.5], rtol=CLOSE)
    assert PoolLink().dram_bytes_of(256) == 32 * 256 * 10**9
    # NVB: 12 TB in a rack, 128 GB of which belong to the host of each of 32 trays.
    assert PoolLink().dram_bytes_of(256) + 32 * 128 * 10**9 == 12_288 * 10**9


def test_many_plans_at_once_are_as_one_by_one() -> None:
    n_bytes, lpus, gpus = (
        np.array([0, 14_336, 10**9]),
        np.array([1, 16, 2304]),
        np.array([72, 8, 1]),
    )
    together = PoolLink().transfer_s(n_bytes, lpus, gpus)
    alone = [
        float(PoolLink().transfer_s(int(b), int(n), int(g)))
        for b, n, g in zip(n_bytes, lpus, gpus, strict=True)
    ]
    assert together.tolist() == alone
    assert PoolLink().transfer_s(n_bytes[:, None], lpus, 4).shape == (3, 3)
    assert float(PoolLink().transfer_s(0, 1, 1)) == PoolLink().latency_s


CHIPS = st.integers(1, 3000)
BYTES = st.floats(0, 1e13)


@given(a=BYTES, b=BYTES, lpus=CHIPS, more=CHIPS, gpus=CHIPS, seed=st.integers(0, 99))
def test_more_bytes_are_never_faster_and_more_chips_never_slower(
    a: float, b: float, lpus: int, more: int, gpus: int, seed: int
) -> None:
    one = draw(PoolLink(), np.random.default_rng(seed))
    least, most = sorted((a, b))
    time_s = one.transfer_s(most, lpus, gpus)
    assert one.latency_s <= one.transfer_s(least, lpus, gpus) <= time_s
    assert one.transfer_s(most, lpus + more, gpus) <= time_s
    assert one.transfer_s(most, lpus, gpus + more) <= time_s
    dram_s = one.dram_transfer_s(most, lpus)
    assert one.dram_transfer_s(least, lpus) <= dram_s
    assert one.dram_transfer_s(most, lpus + more) <= dram_s
    assert one.dram_bytes_of(lpus + more) >= one.dram_bytes_of(lpus)


@given(n_bytes=st.floats(1, 1e12), lpus=CHIPS, gpus=CHIPS)
def test_every_range_is_fastest_at_the_end_that_it_says(
    n_bytes: float, lpus: int, gpus: int
) -> None:
    for constant in uncertain(PoolLink()):
        if constant.options:
            continue
        ends = {"low": constant.low, "high": constant.high}
        fast = dataclasses.replace(PoolLink(), **{constant.name: ends[constant.faster_at]})
        assert fast.transfer_s(n_bytes, lpus, gpus) <= PoolLink().transfer_s(n_bytes, lpus, gpus)
        assert fast.dram_transfer_s(n_bytes, lpus) <= PoolLink().dram_transfer_s(n_bytes, lpus)


@pytest.mark.parametrize("name", LINKS)
def test_every_number_says_where_it_comes_from(name: str) -> None:
    constants = {constant.name: constant for constant in constants_of(LINKS[name])}
    assert all(c.source and c.unit for c in constants.values())
    assert all(c.faster_at or c.options for c in constants.values())
    assert all(c.is_uncertain for c in constants.values() if c.is_assumed)
    assert {n for n, c in constants.items() if c.is_assumed} == {
        "fpga_port_bytes_per_s", "efficiency", "latency_s", "wire_format", "dram_bytes_per_s",
        "dram_latency_s",
    }  # fmt: skip


def test_the_range_of_the_payload_is_that_of_packets() -> None:
    """RoCE v2 has 98 bytes beside a payload, gap and checksums included: 320 or 4,096 of it."""
    headers = 8 + 12 + 14 + 4 + 20 + 8 + 12 + 16 + 4
    (efficiency,) = (c for c in constants_of(PoolLink()) if c.name == "efficiency")
    assert efficiency.low == math.floor(320 / (320 + headers) * 100) / 100
    assert efficiency.high == round(4096 / (4096 + headers), 3)


def test_formats_on_the_wire() -> None:
    bits = [dataclasses.replace(PoolLink(), wire_format=name).wire_value_bits for name in WIRE_BITS]
    assert bits == [8, 16, 32]


@pytest.mark.parametrize(
    ("field", "wrong", "sentence"),
    [
        ("lpu_lanes", 0, "PoolLink.lpu_lanes is 0; it must be a whole number above 0"),
        ("lpu_lanes", 1.5, "PoolLink.lpu_lanes is 1.5; it must be a whole number"),
        ("lane_bytes_per_s", math.inf, "PoolLink.lane_bytes_per_s is inf; it must be a number"),
        ("latency_s", -1e-6, "PoolLink.latency_s is -1e-06; it must be a number above 0"),
        ("efficiency", 1.01, "PoolLink.efficiency is 1.01; it must be .* at most 1"),
        ("wire_format", "fp4", "PoolLink.wire_format is 'fp4'; it must be 'fp8' or 'fp16' or"),
        ("dram_bytes", "256 GB", "PoolLink.dram_bytes is '256 GB'; it must be a whole number"),
    ],
)
def test_no_network_has_such_numbers(
    monkeypatch: pytest.MonkeyPatch, field: str, wrong: Any, sentence: str
) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=sentence):
        dataclasses.replace(PoolLink(), **{field: wrong})
