"""Chips, provenance, errors and printing: published peaks, and a source for every number."""

import dataclasses
import json
from functools import cache

import numpy as np
import pytest

from lpu_jax.errors import LpuError, UnknownNameError, unknown
from lpu_jax.machine.catalogue import named_systems, system
from lpu_jax.machine.chip import MxmMode
from lpu_jax.machine.lpu_chips import GROQ3_LPU, GROQCHIP1
from lpu_jax.machine.lpu_systems import chip
from lpu_jax.provenance import Constant, const, constants_of, vary, weakest
from lpu_jax.quantities import format_bytes, format_count, format_given, format_seconds
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.energy import energy
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario


def test_published_peaks_of_groqchip1_are_exact():
    # ISCA20 / ISCA22 section 5.2, by arithmetic on the array sizes.
    assert GROQCHIP1.mxm_modes["int8"].macs_per_cycle == 409_600
    assert GROQCHIP1.mxm_modes["fp16"].macs_per_cycle == 102_400
    assert GROQCHIP1.sram_bytes == 220 * 2**20
    assert set(GROQCHIP1.mxm_modes) == {"fp16", "int8"}


def test_published_weight_sweep_of_groqchip1():
    # Derived from ISCA20: 12.5 us; 1 % for its three printed digits.
    sweep_s = GROQCHIP1.sram_bytes / GROQCHIP1.weight_stream_bytes_per_cycle / GROQCHIP1.clock_hz
    assert sweep_s == pytest.approx(12.5e-6, rel=0.01)


def test_groq3_meets_its_printed_totals():
    assert set(GROQ3_LPU.mxm_modes) == {"fp16", "int8", "fp8"}
    # NVB: 315 PFLOPS FP8 and 40 PB/s per rack of 256; 5 % for its own rounding (38.4 = 32 trays).
    fp8_flop_per_s = 2 * GROQ3_LPU.mxm_modes["fp8"].macs_per_cycle * GROQ3_LPU.clock_hz
    assert 256 * fp8_flop_per_s == pytest.approx(315e15, rel=0.01)
    # The weight stream is assumed as wide as the SRAM.
    stream_bytes_per_s = GROQ3_LPU.weight_stream_bytes_per_cycle * GROQ3_LPU.clock_hz
    assert 256 * stream_bytes_per_s == pytest.approx(40e15, rel=0.05)


def test_derived_numbers_agree_with_what_they_are_derived_from():
    spec = GROQCHIP1
    # ISCA20: 64 one-byte streams on every lane.
    assert spec.weight_stream_bytes_per_cycle == 64 * spec.lanes
    mode = spec.mxm_modes["int8"]
    arrays = mode.arrays
    assert (
        spec.weight_stream_bytes_per_cycle
        == arrays * spec.array_load_rows_per_cycle * spec.vector_bytes
    )
    # From GAPI's S16 layout: a full int8 round is installed in 20 cycles.
    round_bytes = arrays * mode.k_tile * mode.columns
    assert round_bytes / spec.weight_stream_bytes_per_cycle == 20


#: A latent-attention model with experts, and a grouped-query model with 8-bit products.
EVALUATED = [
    (
        system("lpx-9"),
        model("kimi-k2"),
        POLICIES["int4"],
        Plan(
            stages=61,
            group_chips=32,
            attention=AttentionShard(tensor=16, replica=2),
            mlp=MlpShard(tensor=32),
            moe=MoeShard(expert=2, tensor=16),
        ),
    ),
    (
        system("groq-576"),
        model("llama-2-70b"),
        POLICIES["int8"],
        Plan(
            stages=36,
            group_chips=16,
            attention=AttentionShard(tensor=16),
            mlp=MlpShard(tensor=16),
        ),
    ),
]


def readings(changes):
    """Yield every number of one plan after the other, on chips with some constants changed."""
    for machine, cfg, policy, plan in EVALUATED:
        changed = dataclasses.replace(machine.chip, **changes)
        machine = dataclasses.replace(machine, chip=changed)
        report = evaluate([plan], Scenario(cfg, machine, Request(context=4096), policy=policy))
        numbers = [report.latency_s, report.lower_cycles, report.upper_cycles]
        numbers += [report.used_bytes, report.short_bytes]
        joules = energy(report)
        numbers += [
            0.0 if bound is None else bound
            for bound in (joules.lower_j_per_token, joules.upper_j_per_token)
        ]
        for block in report.blocks.values():
            numbers += block.timing.busy_cycles.values()
        yield np.concatenate([np.broadcast_to(number, (1,)) for number in numbers])


@cache
def unchanged():
    return list(readings({}))


@pytest.mark.first(3)
@pytest.mark.parametrize(
    "constant",
    [
        constant
        for constant in constants_of(GROQCHIP1)
        # Lanes to other chips decide which machines exist, not how fast they are (test_topology).
        # How far the chunks of a prompt go is not read by a decoded token (test_serving).
        # No layer takes a logarithm (test_time_report).
        # Arrays load as slowly as widened weights stream: where it counts, see test_rules.
        # Branching is about the slots of mixtures (slots/test_sizes).
        if constant.unit != "mode"
        and not constant.name.startswith(("branching", "c2c_", "prefill_", "log_", "widening"))
    ],
    ids=lambda constant: constant.name,
)
def test_every_constant_of_a_chip_takes_part_in_a_report(constant):
    """A number that nothing reads would look like a part of the model and be none."""
    if constant.options:
        values = [option for option in constant.options if option != constant.value]
    else:
        values = [type(constant.value)(constant.value * factor) for factor in (3, 0.5)]
    changes = ({constant.name: value} for value in values)
    assert any(
        (changed != before).any()
        for change in changes
        for changed, before in zip(readings(change), unchanged(), strict=True)
    )


@pytest.mark.parametrize("spec", [GROQCHIP1, GROQ3_LPU], ids=lambda spec: spec.name)
def test_every_number_of_every_chip_has_a_source(spec):
    constants = {constant.name: constant for constant in constants_of(spec)}
    texts = {"name", "title", "replaced"}
    assert set(constants) == {field.name for field in dataclasses.fields(spec)} - texts
    for name, constant in constants.items():
        assert constant.value == getattr(spec, name)
        assert constant.unit
        assert constant.status in ("published", "derived", "assumed")
        assert len(constant.source) > 8


def test_groq3_does_not_borrow_the_sources_of_groqchip1():
    for constant in constants_of(GROQ3_LPU):
        if constant.status != "assumed":
            assert "NVB" in constant.source, constant
    alus = next(c for c in constants_of(GROQ3_LPU) if c.name == "vxm_alus_per_lane")
    assert "not public" in alus.source
    assert (alus.status, alus.low, alus.high) == ("assumed", 8, 32)


@pytest.mark.parametrize("machine", named_systems(), ids=lambda machine: machine.name)
def test_every_assumed_number_says_what_else_it_could_be(machine):
    for constant in machine.constants():
        if constant.status == "assumed" and constant.value is not None:
            assert constant.is_uncertain, constant
        if constant.low is not None:
            assert constant.low < constant.high, constant
            assert constant.low <= constant.value <= constant.high, constant
        if constant.options:
            assert constant.value in constant.options, constant
            assert len(set(constant.options)) == len(constant.options) > 1, constant


def test_a_chip_of_which_less_is_known_needs_ranges():
    """What is certain of one chip and only assumed of another cannot stay without a range."""
    given = {"ranges": {"lanes": (160, 640)}, "unchanged": "a test"}
    with pytest.raises(ValueError, match="'clock_hz' is assumed: give its range"):
        vary(GROQCHIP1, **given)
    with pytest.raises(ValueError, match="no constant 'lane'"):
        vary(GROQCHIP1, unchanged="a test", ranges={"lane": (160, 640)})


def test_a_changed_number_loses_its_source():
    changed = dataclasses.replace(GROQCHIP1, clock_hz=1e9)
    clock = next(c for c in constants_of(changed) if c.name == "clock_hz")
    assert (clock.status, clock.source) == ("assumed", "set by the caller")
    assert hash(changed) != hash(GROQCHIP1)


def test_vary_refuses_a_constant_that_is_not_there():
    wrong = Constant(name="clock", value=1.0, unit="Hz", status="derived", source="a test")
    with pytest.raises(ValueError, match="no constant 'clock'"):
        vary(GROQCHIP1, wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "B", "guessed", "x"), "guessed"),
        ((1, "", "assumed", "x"), "unit and a source"),
        ((1, "B", "assumed", ""), "unit and a source"),
        ((1, "B", "assumed", "x", 2, 3), "outside 2..3"),
        ((1, "B", "assumed", "x", 0, None), "both ends"),
        ((1, "B", "assumed", "x"), "give its range"),
    ],
)
def test_a_constant_without_provenance_cannot_be_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        const(*arguments)


def test_options_hold_the_value_and_a_person_needs_no_range():
    with pytest.raises(ValueError, match="not among its options"):
        const("a", "mode", "assumed", "x", options=("b", "c"))
    for source in ("set by the caller", "user file, key 'chip.clock_hz'"):
        assert const(1, "B", "assumed", source).default == 1
    assert const(None, "W", "assumed", "not public").default is None


def test_unknown_names_show_the_nearest():
    assert chip("groqchip1") is GROQCHIP1
    with pytest.raises(UnknownNameError, match="'groq-chip1'; nearest: groqchip1"):
        chip("groq-chip1")
    with pytest.raises(UnknownNameError, match=r"'fp8'.*fp16"):
        GROQCHIP1.mxm_mode("fp8")
    assert GROQ3_LPU.mxm_mode("fp8") == MxmMode(k_tile=320, columns=320, arrays=4)
    assert isinstance(unknown("thing", "zzz", ["a", "b"]), LpuError)
    assert str(unknown("thing", "zzz", ["b", "a"])).endswith("known: a, b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(230_686_720), "230.7 MB"),
        (format_bytes(230_686_720, binary=True), "220 MiB"),
        (format_bytes(1.152e12), "1.152 TB"),
        (format_bytes(999_999), "1 MB"),
        (format_bytes(0), "0 B"),
        (format_seconds(722e-9), "722 ns"),
        (format_seconds(2.166e-6), "2.166 us"),
        (format_seconds(0.0125), "12.5 ms"),
        (format_seconds(float("inf")), "inf ns"),
        (format_count(1_026_408_232_448), "1.026 T"),
        (format_count(288), "288"),
        (format_given("bell\a"), r"'bell\x07'"),
        (format_given("x" * 100), "'" + "x" * 56 + "..."),
        (format_given(10**5000), "a int too large to print"),
    ],
)
def test_quantities_print_in_readable_steps(text, expected):
    assert text == expected


def test_the_weakest_status_is_the_furthest_from_a_public_source():
    assert weakest(["published", "assumed", "derived", "-"]) == "assumed"
    assert weakest(["derived", "-", "published"]) == "derived"
    assert weakest(["-", "published"]) == "published"
    assert weakest(["-"]) == weakest([]) == "-"


def test_a_constant_is_plain_data():
    mode = next(c for c in constants_of(GROQ3_LPU) if c.name == "mxm_fp16")
    plain = json.loads(json.dumps(mode.as_dict()))
    assert (plain["name"], plain["unit"], plain["status"]) == ("mxm_fp16", "mode", mode.status)
    assert plain["value"] == str(mode.value)
    assert plain["options"] == [str(option) for option in mode.options]
    assert mode.is_assumed == (plain["status"] == "assumed")
