"""Ways across between GPUs and LPUs, and plans that take them: by hand from the constants.

Rates of both ends, frames on the links of a node and NVLink are written out here; blocks are those
of plans of one pool on either machine alone.
"""

from dataclasses import replace
from math import ceil, floor, inf
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_scenarios import random_link
from small_mixed import CLOSE, CUT, PLANS, asked_of, mixed_of, short_of_memory
from tiny_models import checkpoint

from lpu_jax.cost.placed_machine import Groups
from lpu_jax.machine.catalogue import any_system, system
from lpu_jax.machine.lpu_chips import GROQ3_LPU
from lpu_jax.machine.mixed import MixedSystem
from lpu_jax.machine.pool_link import PoolLink
from lpu_jax.machine.system import System
from lpu_jax.provenance import CALLER, Constant, constants_of, vary
from models.blocks import BLOCK_KINDS, block_chain
from models.policy import POLICIES
from models.zoo import model
from sharding.legal import check_plan
from sharding.plan import FFN_PARTS, AttentionShard, MlpShard, MoeShard, Plan, VocabShard
from sharding.predict.crossings import crossings_of, least_crossing_cycles, least_gathers
from sharding.predict.evaluate import Evaluation, evaluate
from sharding.predict.pools import lay_out
from sharding.predict.serving import chunk_lengths, prefill
from sharding.request import Request
from sharding.scenario import Scenario

WIRE_BYTES = {"fp8": 1, "fp16": 2, "fp32": 4}


# --- one way across, by hand ----------------------------------------------------------------------


def _lpu_rate(link: PoolLink, n: int) -> float:
    """Bytes a second of payload: lanes, or the ports of their FPGAs."""
    lanes = n * link.lpu_lanes * link.lane_bytes_per_s
    return link.efficiency * min(lanes, ceil(n / link.fpga_lpus) * link.fpga_port_bytes_per_s)


def _gpu_rate(link: PoolLink, n: int) -> float:
    return link.efficiency * n * link.gpu_port_bytes_per_s


def _gpu_gather_s(machine: MixedSystem, n: int, n_bytes: float) -> float:
    """An all-gather behind one switch: each GPU takes in the vector over its own port."""
    assert machine.gpus.gpus is not None
    nvlink = machine.gpus.gpus[1]
    rate = nvlink.link_bytes_per_s * nvlink.link_efficiency
    return nvlink.collective_latency_s + n_bytes / rate if n > 1 else 0.0


def _lpu_gather_s(machine: MixedSystem, n: int, n_bytes: float) -> float:
    """An all-gather in a tray: a hop, and a frame more for each further vector of a part."""
    assert machine.lpus.lpus is not None
    links = machine.lpus.lpus[1]
    if n == 1:
        return 0.0
    frames = ceil(ceil(n_bytes / 320) / n)
    rate = 4 * 12.5e9  # SA26: 4x100G to each peer
    return float(links.local_hop_s + (frames - 1) * 328 / rate)


def _by_hand(machine: MixedSystem, gpus: int, lpus: int, n_bytes: float) -> list[list[float]]:
    """Of the way to the GPUs and of that to the LPUs: seconds, of LPUs' lanes, of GPUs' ports."""
    link, found = machine.link, []
    for n_out, n_in, out, into, gather in (
        (lpus, gpus, _lpu_rate, _gpu_rate, _gpu_gather_s),
        (gpus, lpus, _gpu_rate, _lpu_rate, _lpu_gather_s),
    ):
        to_each = n_bytes / min(out(link, n_out), into(link, 1))
        in_parts = n_bytes / min(out(link, n_out), into(link, n_in))
        gathered = in_parts + gather(machine, n_in, n_bytes)
        n_lanes = 1 if to_each <= gathered else n_in
        ends = [n_bytes / out(link, n_out), n_bytes / into(link, n_lanes)]
        found.append([link.latency_s + min(to_each, gathered), *ends])
    found[1][1:] = found[1][:0:-1]
    return found


def _groups(gpus: int, lpus: int) -> tuple[Groups, Groups]:
    return Groups(gpus, np.array([0])), Groups(lpus, np.array([0]))


def _bytes(asked: Scenario) -> float:
    assert asked.mixed is not None
    request = asked.request
    values = request.batch * request.tokens * asked.model.d_model
    return float(values * WIRE_BYTES[asked.mixed.link.wire_format])


@given(
    st.integers(0, 1_000_000),
    st.integers(1, 4),
    st.integers(1, 16),
    st.sampled_from([1, 2, 64, 512]),
)
def test_a_way_across_is_the_quicker_of_two_by_hand(
    seed: int, gpus: int, lpus: int, batch: int
) -> None:
    machine = mixed_of(random_link(Random(seed)))
    asked = asked_of(machine, batch=batch)
    found = crossings_of(_groups(gpus, lpus), asked)
    by_hand = np.array(_by_hand(machine, gpus, lpus, _bytes(asked)))
    clock_hz = GROQ3_LPU.clock_hz
    got = np.stack([found.cycles, found.lpu_lanes, found.gpu_ports], axis=1) / clock_hz
    np.testing.assert_allclose(got, by_hand, rtol=CLOSE)
    # Bytes are no longer on their way than the latency says, and lanes busy no longer than these.
    assert np.all(found.lpu_lanes <= found.cycles)
    assert np.all(found.gpu_ports <= found.cycles)
    assert np.all(found.cycles >= machine.link.latency_s * clock_hz)
    chips = np.array([gpus]), np.array([lpus])
    there, back = least_crossing_cycles(*chips, least_gathers(asked), asked)
    assert there[0] <= found.cycles[1] * (1 + CLOSE)
    assert back[0] <= found.cycles[0] * (1 + CLOSE)


def test_both_ways_of_a_hidden_state_of_kimi_k2_written_out() -> None:
    """14,336 bytes: 1.207 us over one lane of 11.875 GB/s, 0.038 us over 32, 0.151 us over a port.

    To 32 LPUs of two trays the whole vector goes over every lane, or parts are gathered; to one GPU
    it goes over its port of 190 GB/s.
    """
    asked = Scenario(
        model("kimi-k2"), system("lpx-1"), Request(context=8192), policy=POLICIES["int4"]
    )
    asked = asked.on(any_system("vr-lpx-1"))
    found = crossings_of(_groups(1, 32), asked)
    to_gpu, to_lpus = found.cycles / GROQ3_LPU.clock_hz
    assert to_gpu == pytest.approx(3e-6 + 14336 / min(32 * 11.875e9, 190e9), rel=CLOSE)
    assert 3e-6 + 14336 / 190e9 < to_lpus <= 3e-6 + 14336 / 11.875e9
    alone = crossings_of(_groups(1, 1), asked).cycles / GROQ3_LPU.clock_hz
    np.testing.assert_allclose(alone, 3e-6 + 14336 / 11.875e9, rtol=CLOSE)


def test_either_of_the_two_is_taken_where_it_is_quicker() -> None:
    """With quick lanes the network brings whole vectors; with slow ones parts are gathered."""
    quick, slow = mixed_of(lane_bytes_per_s=1e12), mixed_of(lane_bytes_per_s=1e8)
    for machine, n_lanes in ((quick, 1), (slow, 16)):
        asked = asked_of(machine)
        (_, busy) = crossings_of(_groups(1, 16), asked).lpu_lanes
        of_lanes = _bytes(asked) / _lpu_rate(machine.link, n_lanes) * GROQ3_LPU.clock_hz
        assert busy == pytest.approx(of_lanes, rel=CLOSE)


# --- plans, by hand -------------------------------------------------------------------------------


def _alone(plan: Plan, asked: Scenario) -> tuple[Evaluation, Evaluation]:
    """The blocks of both pools: plans of one pool on either machine, other parts copied."""
    assert asked.mixed is not None
    assert plan.ffn is not None
    one = replace(asked, mixed=None)
    n, has_moe = plan.group_chips, plan.moe is not None
    on_gpus = Plan(
        stages=plan.stages,
        group_chips=n,
        attention=plan.attention,
        vocab=plan.vocab,
        mlp=MlpShard(replica=n),
        moe=MoeShard(replica=n) if has_moe else None,
    )
    n = plan.ffn.group_chips
    on_lpus = Plan(
        stages=plan.ffn.stages,
        group_chips=n,
        attention=AttentionShard(replica=n),
        vocab=VocabShard(replica=n),
        mlp=plan.mlp,
        moe=plan.moe,
    )
    gpus = replace(one, system=asked.mixed.gpus, expert_shares=None)
    return evaluate([on_gpus], gpus), evaluate([on_lpus], one)


def _number(value: object) -> float:
    return float(np.broadcast_to(np.asarray(value), 1)[0])


def _nvlink_s(machine: MixedSystem, n_bytes: float) -> float:
    assert machine.gpus.gpus is not None
    links = machine.gpus.gpus[1]
    return links.collective_latency_s + n_bytes / (links.link_bytes_per_s * links.link_efficiency)


def _check_plan_by_hand(plan: Plan, asked: Scenario) -> None:
    """Latency, the period and what is in flight, in seconds, from the blocks of either machine."""
    check_plan(plan, asked)
    assert asked.mixed is not None
    assert plan.ffn is not None
    machine, request, chain = asked.mixed, asked.request, block_chain(asked.model)
    found, alone = evaluate([plan], asked), _alone(plan, asked)
    kinds = [block.kind for block in chain]
    pool = [int(BLOCK_KINDS[kind].part in FFN_PARTS) for kind in kinds]
    seconds = [
        _number(alone[own].blocks[kind].timing.cycles) / alone[own].clock_hz
        for kind, own in zip(kinds, pool, strict=True)
    ]
    ways = _by_hand(machine, plan.group_chips, plan.ffn.group_chips, _bytes(asked))
    stage = found.cuts.stage_of_block[:, 0].tolist()
    n_stages = plan.stages + plan.ffn.stages
    work, out, into = np.zeros((3, n_stages))
    latency, crossings, wire = sum(seconds), 0, 0.0
    for i, (own, after) in enumerate(zip(stage, [*stage[1:], stage[0]], strict=True)):
        work[own] += seconds[i]
        assert (own >= plan.stages) == bool(pool[i])
        if own == after:
            continue
        if i == len(chain) - 1:
            latency += _nvlink_s(machine, 4 * request.batch * request.sampled_tokens)
        elif pool[i] == pool[i + 1]:
            assert pool[i] == 0  # every FFN is followed by attention or the head
            n_bytes = 2 * request.batch * request.tokens * asked.model.d_model
            latency, wire = latency + _nvlink_s(machine, n_bytes), wire + n_bytes
        else:
            crossings += 1
            way = ways[pool[i + 1]]
            latency += way[0]
            out[own] += way[2 if pool[i] == 0 else 1]
            into[after] += way[1 if pool[i] == 0 else 2]
            wire += _bytes(asked)
    assert crossings == 2 * asked.model.n_layers
    latency += machine.gpus.host_overhead_s
    assert found.latency_s[0] == pytest.approx(latency, rel=CLOSE)
    slowest = max(work.max(), out.max(), into.max())
    assert found.slowest_stage_cycles[0] / found.clock_hz == pytest.approx(slowest, rel=CLOSE)
    flying = min(_cached(plan, asked, alone, stage), n_stages + 2) if found.fits[0] else 1
    assert found.in_flight[0] == flying
    period = max(slowest, latency / flying)
    assert found.cycles_per_batch[0] / found.clock_hz == pytest.approx(period, rel=CLOSE)
    inside = sum(
        _number(alone[own].blocks[kind].wire_bytes) for kind, own in zip(kinds, pool, strict=True)
    )
    assert found.wire_bytes[0] == pytest.approx(inside + wire, rel=CLOSE)


def _cached(
    plan: Plan, asked: Scenario, alone: tuple[Evaluation, Evaluation], stage: list[int]
) -> float:
    """Micro-batches whose caches have room beside weights, live values and tables of a GPU."""
    assert asked.mixed is not None
    chip, chain = asked.mixed.gpus.chip, block_chain(asked.model)
    served = [kind for kind in alone[0].blocks if BLOCK_KINDS[kind].part not in FFN_PARTS]
    held = {kind: alone[0].blocks[kind].held for kind in served}
    live = max(_number(own.activations) for own in held.values())
    tables = sum(
        _number(own.tables)
        for kind, own in held.items()
        if kind != "sliding" or "attention" not in held
    )
    room = chip.memory_bytes * (1 - chip.reserved_fraction) - live - tables
    most = inf
    for number in range(plan.stages):
        own = [chain[i].kind for i, its in enumerate(stage) if its == number]
        weights = sum(_number(held[kind].weights) for kind in own)
        cached = sum(_number(held[kind].cache) for kind in own)
        if cached:
            most = min(most, floor((room - weights) / cached))
    return most


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("seed", [None, 4])
def test_a_plan_takes_what_its_blocks_and_ways_take(name: str, seed: int | None) -> None:
    machine = mixed_of(None if seed is None else random_link(Random(seed)))
    _check_plan_by_hand(Plan.parse(name), asked_of(machine))


@pytest.mark.parametrize("mega_bytes", [66, 68, 70, 76])
def test_caches_of_few_micro_batches_have_room(mega_bytes: int) -> None:
    """Of two stages there are up to four in flight: the caches of a GPU decide how many."""
    machine = short_of_memory(mixed_of(), mega_bytes * 10**6)
    asked = asked_of(machine, batch=4, context=512)
    _check_plan_by_hand(Plan.parse("1x1 a:1 + 1x2 f:2t row"), asked)


@pytest.mark.parametrize("name", ["llama_tied", "gpt_oss", "kimi_k2", "mixtral"])
def test_tiny_models_take_what_their_blocks_and_ways_take(name: str) -> None:
    cfg = checkpoint(name).config
    moe = "" if cfg.moe is None else " m:2e"
    plan = Plan.parse(f"2x1 a:1 + 1x2 f:2t{moe} row")
    _check_plan_by_hand(plan, asked_of(mixed_of(), cfg, context=64))


def test_the_host_of_the_gpus_is_in_every_time_and_that_of_the_lpus_in_none() -> None:
    """The head is on the GPUs: their host samples, and the first token waits for it too."""
    plans = [Plan.parse("1x1 a:1 + 1x2 f:2t row")]
    quick, slow = (asked_of(mixed_of(host_s=host_s)) for host_s in (0.0, 7e-5))
    more = evaluate(plans, slow).latency_s - evaluate(plans, quick).latency_s
    assert more[0] == pytest.approx(7e-5, rel=1e-9)
    for asked, host_s in ((quick, 0.0), (slow, 7e-5)):
        found = prefill(plans, np.ones(1, bool), asked, prompt_tokens=200)
        waited = found.time_to_first_token_s - found.latency_s
        assert waited[0] == pytest.approx(host_s, abs=1e-12)


def test_a_chunk_of_a_prompt_is_one_that_both_machines_take() -> None:
    machine = mixed_of()
    assert chunk_lengths(asked_of(machine, context=4096))[-1] == 128
    few = replace(machine.gpus.chip, prefill_chunk_tokens=40)
    asked = asked_of(replace(machine, gpus=replace(machine.gpus, chip=few)), context=4096)
    assert chunk_lengths(asked)[-1] == 40


# --- machines without any cost, and of the zoo ---------------------------------------------------


def _free(spec: Any, **numbers: float) -> Any:
    """A variant whose numbers cost nothing."""
    units = {constant.name: constant.unit for constant in constants_of(spec)}
    return vary(
        spec,
        *(
            Constant(name=name, value=value, unit=units[name], status="assumed", source=CALLER)
            for name, value in numbers.items()
        ),
    )


def _free_gpus() -> System:
    whole = system("h100x4")
    rates = ("memory_bytes_per_s", "fp16_flop_per_s", "fp8_flop_per_s", "int8_op_per_s")
    return replace(
        whole,
        chip=_free(whole.chip, launch_gap_s=1e-30, **dict.fromkeys(rates, 1e40)),
        topology=_free(whole.topology, link_bytes_per_s=1e40, collective_latency_s=1e-30),
    )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("zoo", "policy"), [("smollm2-135m", "fp16"), ("gpt-oss-20b", "mxfp4")])
def test_beside_gpus_and_a_network_that_cost_nothing_only_ffns_take_time(
    name: str, zoo: str, policy: str
) -> None:
    rates = ("lane_bytes_per_s", "fpga_port_bytes_per_s", "gpu_port_bytes_per_s")
    link = _free(PoolLink(), latency_s=1e-30, **dict.fromkeys(rates, 1e40))
    machine = replace(mixed_of(link), gpus=_free_gpus())
    cfg, plan = model(zoo), Plan.parse(name)
    cfg = replace(cfg, n_layers=3, sliding_layers=cfg.sliding_layers[:2])
    if cfg.moe is not None:
        assert plan.ffn is not None
        plan = replace(plan, moe=MoeShard(expert=plan.ffn.group_chips))
    asked = asked_of(machine, cfg, policy, batch=1)
    check_plan(plan, asked)
    found, (_, lpus) = evaluate([plan], asked), _alone(plan, asked)
    ffns = [
        _number(lpus.blocks[block.kind].timing.cycles)
        for block in block_chain(cfg)
        if BLOCK_KINDS[block.kind].part in FFN_PARTS
    ]
    assert len(ffns) == 3
    assert found.latency_cycles[0] == pytest.approx(sum(ffns), rel=CLOSE)
    # As many micro-batches as there are stages keep all of them busy.
    assert plan.ffn is not None
    if not found.fits[0]:
        return
    longest = {1: sum(ffns), 2: max(ffns[0] + ffns[1], ffns[2]), 3: max(ffns)}[plan.ffn.stages]
    assert found.cycles_per_batch[0] == pytest.approx(longest, rel=CUT)


@pytest.mark.parametrize(
    ("zoo", "machine", "policy", "name"),
    [
        ("kimi-k2", "vr-lpx-9", "int4", "4x4 a:4t + 60x37 f:37t m:37e row"),
        ("gpt-oss-120b", "h100-lpx-2", "mxfp4", "2x4 a:4t + 12x32 f:32t m:32e row"),
        ("llama-3.1-8b", "h100-lpx-1", "fp8", "8x1 a:1 + 8x32 f:32t row"),
        # Of 52 layers of one block each, 23 are on the LPUs.
        ("nemotron-3-nano-30b-a3b", "h100-lpx-1", "nvfp4", "2x2 a:2t + 4x32 f:32t m:32e row"),
    ],
)
def test_models_of_the_zoo_are_the_sum_of_their_blocks_and_ways(
    zoo: str, machine: str, policy: str, name: str
) -> None:
    """Where groups are larger than a node, gathers among LPUs are not written out but asked for."""
    mixed, cfg, plan = any_system(machine), model(zoo), Plan.parse(name)
    assert isinstance(mixed, MixedSystem)
    asked = asked_of(mixed, cfg, policy, batch=8, context=4096)
    check_plan(plan, asked)
    found, alone = evaluate([plan], asked), _alone(plan, asked)
    total = 0.0
    for block in block_chain(cfg):
        own = alone[BLOCK_KINDS[block.kind].part in FFN_PARTS]
        total += _number(own.blocks[block.kind].timing.cycles) / own.clock_hz
    groups = lay_out(plan.pools, mixed.gpus, mixed.lpus)
    back, there = crossings_of(groups, asked).cycles / found.clock_hz
    n_visits = sum(BLOCK_KINDS[block.kind].part in FFN_PARTS for block in block_chain(cfg))
    rest = found.latency_s[0] - total - n_visits * (there + back) - mixed.gpus.host_overhead_s
    # Embedding, first attention, head: at most one hand-over among GPUs, and the ids back.
    ids, whole = _nvlink_s(mixed, 4 * 8), _nvlink_s(mixed, 2 * 8 * cfg.d_model)
    ways = [0.0] if plan.stages == 1 else [ids, ids + whole]
    assert min(abs(rest - way) for way in ways) < 1e-9 * total
    assert found.in_flight[0] <= plan.n_stages + 2
