"""GPUs as published figures: totals of whole machines, sources, names, and what is refused."""

import dataclasses

import numpy as np
import pytest

from lpu_jax.errors import LpuError, PlanError, UnknownNameError
from lpu_jax.machine.catalogue import system
from lpu_jax.machine.gpu import GB200, GB200_DOMAIN, H100, H100_DOMAIN, RUBIN, RUBIN_DOMAIN
from lpu_jax.machine.gpu_systems import GpuSystem, named_gpu_systems
from lpu_jax.provenance import constants_of
from models.policy import FP16
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.rank.choose import default_plans
from sharding.verify import chosen_layers

ALL = [H100, GB200, RUBIN, H100_DOMAIN, GB200_DOMAIN, RUBIN_DOMAIN]


@pytest.mark.parametrize(
    ("gpu", "domain", "memory_tb", "bandwidth_tb_s", "links_tb_s", "fp8_pflop_s"),
    [
        # Vendor's totals: HGX H100 640 GB, 7.2 TB/s NVLink; GB200 NVL72 13.4 TB, 576 TB/s,
        # 130 TB/s, 360 PFLOP/s dense; Vera Rubin NVL72 20.7 TB, 1.6 PB/s, 260 TB/s, 1.2 EFLOP/s.
        (H100, H100_DOMAIN, 0.64, 26.8, 7.2, 15.8),
        (GB200, GB200_DOMAIN, 13.4, 576, 130, 360),
        (RUBIN, RUBIN_DOMAIN, 20.7, 1_600, 260, 1_200),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_whole_machines_meet_their_printed_totals(
    gpu, domain, memory_tb, bandwidth_tb_s, links_tb_s, fp8_pflop_s
):
    n = domain.domain_gpus
    assert domain.n_chips == n
    # 2 %: the totals are printed with two or three digits
    assert n * gpu.memory_bytes == pytest.approx(memory_tb * 1e12, rel=0.02)
    assert n * gpu.memory_bytes_per_s == pytest.approx(bandwidth_tb_s * 1e12, rel=0.02)
    assert n * 2 * domain.link_bytes_per_s == pytest.approx(links_tb_s * 1e12, rel=0.02)
    assert n * gpu.fp8_flop_per_s == pytest.approx(fp8_pflop_s * 1e15, rel=0.02)


def test_rates_and_power_of_one_gpu():
    assert (H100.fp16_flop_per_s, GB200.fp16_flop_per_s) == (989e12, 2_500e12)
    assert (H100.power_w, GB200.power_w, RUBIN.power_w) == (700, 1_200, 1_800)
    for gpu in (H100, GB200, RUBIN):
        assert gpu.fp8_flop_per_s == pytest.approx(2 * gpu.fp16_flop_per_s, rel=1e-3)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: getattr(spec, "name", spec.family
                         if hasattr(spec, "family") else None))  # fmt: skip
def test_every_number_has_a_source_and_every_assumed_one_a_range(spec):
    for constant in constants_of(spec):
        assert constant.value == getattr(spec, constant.name)
        assert len(constant.source) > 8
        if constant.status == "assumed" and constant.value is not None:
            assert constant.low is not None, constant.name
            assert constant.low <= constant.value <= constant.high
            assert constant.low < constant.high


def test_later_gpus_do_not_borrow_published_figures():
    for spec in (GB200, RUBIN, GB200_DOMAIN, RUBIN_DOMAIN):
        for constant in constants_of(spec):
            if constant.status != "assumed":
                assert "H100DS" not in constant.source, constant


def test_operands_without_a_rate_multiply_as_16_bit():
    assert [H100.rate_of(kind) for kind in ("fp16", "fp8", "int8")] == [
        "fp16_flop_per_s",
        "fp8_flop_per_s",
        "int8_op_per_s",
    ]
    assert RUBIN.rate_of("int8") == "fp16_flop_per_s"
    assert RUBIN.rate_of("fp8") == "fp8_flop_per_s"


@pytest.mark.parametrize(
    ("name", "n_gpus", "gpu"),
    [
        ("h100x8", 8, H100),
        ("h100x1", 1, H100),
        ("gb200-nvl72", 72, GB200),
        ("gb200x16", 16, GB200),
        ("vr-nvl72", 72, RUBIN),
        ("vrx72", 72, RUBIN),
    ],
)
def test_names_give_gpus(name, n_gpus, gpu):
    found = system(name)
    assert isinstance(found, GpuSystem)
    assert (found.name, found.n_chips, found.chip) == (name, n_gpus, gpu)
    assert found.topology.n_chips == n_gpus
    assert found.memory_bytes == n_gpus * gpu.memory_bytes
    assert "roofline" in found.note
    assert system("groq-node").note == ""


def test_the_listing_is_made_of_names_that_work():
    listed = named_gpu_systems()
    assert [one.name for one in listed] == ["h100x8", "gb200-nvl72", "vr-nvl72"]
    assert [system(one.name) for one in listed] == list(listed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100x9", "1 to 8 GPUs, not 9"),
        ("gb200x73", "1 to 72 GPUs, not 73"),
        ("h100x0", "unknown system"),
        ("h100", "h100x8"),
        ("gb200-nvl36", "gb200-nvl72"),
        ("vr-nvl144", "vr-nvl72"),
        ("h100x" + "9" * 30, "unknown system"),
    ],
)
def test_other_names_are_refused_in_one_sentence(name, message):
    with pytest.raises(UnknownNameError, match=message) as error:
        system(name)
    assert "\n" not in str(error.value)


def test_whoever_plans_may_ask_gpus_and_lpus_the_same():
    for name in ("h100x8", "vr-nvl72", "groq-node", "lpx-rack"):
        found = system(name)
        chip, topology = found.chip, found.topology
        assert found.has_link_schedules == bool(topology.levels)
        assert found.memory_bytes == found.n_chips * chip.memory_bytes
        assert chip.transit_cycles >= 0
        assert topology.level_of(topology.span([0], 1, 1)) == "chip"
        assert topology.level_of(topology.span([0], 2, 4)) != "chip"
        chunk = next(c for c in constants_of(chip) if c.name == "prefill_chunk_tokens")
        assert (chunk.status, chunk.value) == ("assumed", chip.prefill_chunk_tokens)
        assert chunk.low < chunk.value < chunk.high
    assert (H100.power_max_w, H100.power_average_w) == (700.0, None)
    assert not hasattr(system("h100x8"), "sram_bytes")


def test_groups_lie_one_after_another():
    assert GB200_DOMAIN.stage_bases(3, 24).tolist() == [0, 24, 48]
    for groups, chips in ((3, 25), (0, 8), (1, 0)):
        with pytest.raises(PlanError, match="GPUs"):
            GB200_DOMAIN.stage_bases(groups, chips)
    assert GB200_DOMAIN.stage_bases(1, 72).dtype == np.int64


def test_a_domain_has_a_size():
    with pytest.raises(PlanError, match="1 to 8 GPUs, not 9"):
        dataclasses.replace(H100_DOMAIN, n_chips=9)


def test_values_are_refused_in_one_sentence():
    gpus, cfg = system("h100x8"), model("smollm2-135m")
    plan = Plan(stages=1, group_chips=1, attention=AttentionShard(tensor=1), mlp=MlpShard(tensor=1))
    for refused in (
        lambda: chosen_layers.compare_plans(cfg, gpus, [plan], policy=FP16),
        lambda: default_plans(cfg, gpus, FP16),
        lambda: gpus.require_lpu("generate"),
    ):
        with pytest.raises(LpuError, match=r"h100x8 is a GPU roofline .* give an LPU system"):
            refused()
    system("groq-node").require_lpu("check")
