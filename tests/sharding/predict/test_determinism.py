"""Time never depends on data: one program, one schedule, whatever is routed or cached."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_KIMI, TINY_LLAMA, hidden, place, plan, runner

from lpu_jax import mesh
from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import schedule
from lpu_jax.machine.catalogue import system
from models.blocks import block_program
from models.config import ModelConfig
from models.layers.linear import Split
from sharding.request import Request
from sharding.run.load import LoadedBlock

N_DRAWS = 100
#: Tracing never sees values; that is asked of some draws, that one program runs of all.
N_TRACED = 5
MACHINE = one_group(system("groq-rack"), 4)


def issue_times(cfg: ModelConfig, block: LoadedBlock, arguments: tuple[Any, ...]) -> list[Any]:
    """Schedule the very program that runs, traced with the very arguments it runs with."""
    program = block_program(cfg, block.kind, block.policy, block.split, experts=block.experts)
    jaxpr = mesh.trace(program, block.mesh, block.in_specs, block.out_specs, *arguments)
    timing = schedule(read(jaxpr, strict=True), MACHINE)
    return [(slot.operation.name, slot.start, slot.first, slot.last) for slot in timing.slots]


@pytest.mark.slow
def test_a_hundred_routings_take_the_same_cycles() -> None:
    request = Request(batch=2, tokens=1, context=1)
    block = place(TINY_KIMI, "moe", plan("moe", Split.ROW, expert=2, tensor=2), request)
    run = runner(TINY_KIMI, block)
    x, weights, placement = hidden(request.batch, 1, TINY_KIMI.d_model), *block.arguments[1:]
    rng = np.random.default_rng(0)
    schedules, outputs = [], set()
    for _ in range(N_DRAWS):
        # A correction bias far above the scores chooses the experts whatever the token is.
        bias = jnp.asarray(100 * rng.permutation(weights["router_bias"].size), jnp.float32)
        chosen = {**weights, "router_bias": bias.reshape(weights["router_bias"].shape)}
        outputs.add(np.asarray(run(x, chosen, placement)).tobytes())
        if len(schedules) < N_TRACED:
            schedules.append(issue_times(TINY_KIMI, block, (x, chosen, placement)))
    assert len(outputs) > N_DRAWS // 2  # the token is the same: other outputs are other experts
    assert run._cache_size() == 1  # one program was compiled for all of them
    assert all(times == schedules[0] for times in schedules)


@pytest.mark.slow
def test_a_hundred_cache_fills_take_the_same_cycles() -> None:
    request = Request(batch=2, tokens=1, context=160)
    block = place(TINY_LLAMA, "attention", plan("attention", Split.ROW, tensor=4), request)
    run = runner(TINY_LLAMA, block)
    x, weights, cache, tables, _, share = block.arguments
    rng = np.random.default_rng(0)
    schedules, outputs = [], set()
    for seed in range(N_DRAWS):
        x = hidden(request.batch, 1, TINY_LLAMA.d_model, seed)
        filled = jax.tree.map(
            lambda held: jnp.asarray(rng.normal(size=held.shape), held.dtype), cache
        )
        positions = jnp.asarray(rng.integers(0, request.context, request.batch), jnp.int32)
        arguments = (x, weights, filled, tables, positions, share)
        outputs.add(np.asarray(run(*arguments)[0]).tobytes())
        if len(schedules) < N_TRACED:
            schedules.append(issue_times(TINY_LLAMA, block, arguments))
    assert len(outputs) == N_DRAWS
    assert run._cache_size() == 1
    assert all(times == schedules[0] for times in schedules)


def test_another_length_is_another_program() -> None:
    """The comparison above can fail: a longer allocated context takes longer."""
    times = []
    for context in (160, 640):
        block = place(
            TINY_LLAMA,
            "attention",
            plan("attention", Split.ROW, tensor=4),
            Request(batch=2, tokens=1, context=context),
        )
        times.append(issue_times(TINY_LLAMA, block, block.arguments))
    assert times[0] != times[1]
