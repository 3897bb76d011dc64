"""A fixed slice of the fuzz, and that it sees what it should: `make fuzz` goes on without end."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from fuzz import promises
from fuzz.chips import run_one_by_one
from fuzz.draw import BATCH, MODELS, triple
from jax.sharding import PartitionSpec as P
from small_machines import NODE, tiered

from lpu_jax.datapath import c2c, vxm, wide_sums
from lpu_jax.datapath.axis import Axis
from lpu_jax.mesh import ChipMesh, run_virtual
from models import zoo
from models.hf_families import TENSOR_NAMES
from models.layers.linear import Split
from sharding.plan import AttentionShard, MlpShard

TESTS = Path(__file__).parents[1]
#: Triples of the slice: one of each model.
N_TRIPLES = len(MODELS)
#: Families whose blocks are those of others, under other names, but for layers without rotation
#: and constants that scale values.
ALIKE = {"mistral", "qwen2", "mimo", "qwen3_vl", "phi3", "smollm3", "granite"}
#: Families that are not drawn: no triple has states, experts in a narrower space, or an index, and
#: the last have no named model.
NOT_DRAWN = {
    *("deepseek_v32", "glm_moe_dsa", "minimax_m3"),
    *("qwen3_next", "qwen3_5", "kimi_linear", "kimi_k3", "bailing_hybrid", "nemotron_h"),
    *("gemma2", "glm4", "olmo2", "olmo3", "exaone4", "qwen2_moe", "mimo_v2_flash", "step3p7"),
}
#: Triples whose every block is held against one chip, for each of the splits that promise it.
FEW_SPLITS, MANY_SPLITS = 4, 200

COLLECTIVES: dict[str, tuple[Callable[[jax.Array, Axis], jax.Array], P]] = {
    "all_reduce": (c2c.all_reduce, P()),
    "all_gather": (lambda x, axis: c2c.all_gather(x, axis, dim=-1, keep=11), P()),
    "reduce_scatter": (
        lambda x, axis: c2c.reduce_scatter(x, axis, dim=-1),
        P(None, ("a", "b")),
    ),
    "all_to_all": (lambda x, axis: c2c.all_to_all(x, axis, dim=-1), P(None, ("a", "b"))),
}
#: Sums that have the same bits in any order, or only for powers of two of chips.
FIXED: dict[str, tuple[Callable[[jax.Array, Axis], jax.Array], P]] = {
    "tree_all_reduce": (lambda x, axis: c2c.tree_all_reduce(vxm.to_fp32(x), axis), P()),
    "tree_reduce_scatter": (
        lambda x, axis: c2c.tree_reduce_scatter(vxm.to_fp32(x), axis, dim=-1),
        P(None, ("a", "b")),
    ),
    "whole_all_reduce": (
        lambda x, axis: c2c.whole_all_reduce((jnp.asarray(x) * 100).astype(jnp.int32), axis),
        P(),
    ),
    "wide_all_reduce": (
        lambda x, axis: c2c.wide_all_reduce(
            wide_sums.sum_terms(vxm.to_fp32(x).reshape(1, *x.shape)), axis
        ),
        P(),
    ),
}


@pytest.fixture(autouse=True)
def _without_checks_of_annotations() -> Iterator[None]:
    """Chips one by one hand NumPy arrays to operations, whose annotations say arrays of JAX."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_seed_is_one_triple_and_every_family_has_some() -> None:
    assert triple(5) == triple(5)
    assert len({str(triple(seed)) for seed in range(20)}) == 20
    assert not any("\n" in str(triple(seed)) for seed in range(20))
    assert {zoo.model(name).family for name in MODELS} == set(TENSOR_NAMES) - ALIKE - NOT_DRAWN


def test_triples_have_all_that_a_plan_can_say() -> None:
    plans = [triple(seed).plan for seed in range(120)]
    mixtures = [plan.moe for plan in plans if plan.moe is not None]
    for name in ("tensor", "context", "replica"):
        assert max(getattr(plan.attention, name) for plan in plans) > 2
    assert max(plan.attention.data for plan in plans) == BATCH
    for name in ("expert", "tensor", "replica"):
        assert max(getattr(moe, name) for moe in mixtures) > 2
    assert {plan.group_chips for plan in plans} == set(range(1, 9))
    assert {plan.collective for plan in plans} >= {"auto", "ring"}
    assert {moe.dispatch for moe in mixtures} == {"replicated", "all_to_all"}


@pytest.mark.parametrize("algorithm", ["auto", "ring"])
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_chips_one_by_one_send_what_virtual_chips_send(kind: str, algorithm: str) -> None:
    collective, spec = COLLECTIVES[kind]
    machine = NODE if algorithm == "ring" else tiered(4)
    axes = (("a", 2), ("b", 3))
    mesh = ChipMesh(axes=axes, topology=machine.topology, algorithm=algorithm)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 72)), jnp.float16)

    def program(x: jax.Array, *, axes: dict[str, Axis]) -> Any:
        return collective(x, c2c.joined(axes["a"], axes["b"]))

    got, expected = (
        np.asarray(run(program, mesh, (P(None, ("a", "b")),), spec)(x))
        for run in (run_one_by_one, run_virtual)
    )
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", FIXED)
def test_sums_that_no_split_moves_are_those_of_virtual_chips(kind: str) -> None:
    collective, spec = FIXED[kind]
    mesh = ChipMesh(axes=(("a", 2), ("b", 4)), topology=tiered(4).topology)
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float16)
    if kind == "wide_all_reduce":
        x[0, :6] = [np.inf, -np.inf, np.nan, 60000, -60000, 1e-7]

    def program(x: jax.Array, *, axes: dict[str, Axis]) -> Any:
        return collective(x, c2c.joined(axes["a"], axes["b"]))

    got, expected = (
        np.asarray(run(program, mesh, (P(None, ("a", "b")),), spec)(jnp.asarray(x)))
        for run in (run_one_by_one, run_virtual)
    )
    assert got.tobytes() == expected.tobytes()


def test_a_chip_that_goes_its_own_way_is_seen() -> None:
    mesh = ChipMesh(axes=(("a", 2),), topology=NODE.topology)
    x = jnp.arange(4.0)
    with pytest.raises(AssertionError, match="chips differ in a result that they should share"):
        run_one_by_one(lambda x, axes: x, mesh, (P("a"),), P())(x)


@pytest.mark.slow
def test_a_broken_promise_is_seen_and_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # A plan that splits rows does not have the bits of one chip.
    monkeypatch.setattr(promises, "promises_one_chip_bits", lambda plan: True)
    plan = replace(
        triple(0).plan,
        group_chips=2,
        attention=AttentionShard(tensor=2),
        mlp=MlpShard(tensor=2, split=Split.ROW),
    )
    cfg = replace(triple(0).cfg, attention=replace(triple(0).cfg.attention, n_kv_heads=2))
    policy = replace(triple(0).policy, wire="base")
    broken = replace(triple(0), seed=1, plan=plan, cfg=cfg, policy=policy)
    with pytest.raises(promises.BrokenPromiseError, match="one chip's bits") as told:
        promises.check(broken, Counter())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("first", "n_triples"),
    [
        # The first of these few is one whose blocks a split by rows changes.
        pytest.param(64, FEW_SPLITS, marks=pytest.mark.slow),
        pytest.param(0, MANY_SPLITS, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("rule", [Split.TREE, Split.WIDE])
def test_splits_have_the_bits_of_one_chip_under_their_rule(
    rule: Split, first: int, n_triples: int
) -> None:
    out = _fuzzed("--rule", rule, "--first", str(first), "--triples", str(n_triples))
    counts = {words: int(n) for n, words in re.findall(r"^ *(\d+)  (.*)$", out, re.MULTILINE)}
    assert counts["one chip's bits under its rules"] >= n_triples
    # The comparison sees what it should: a split by rows changes some of the same blocks.
    assert 0 < counts["of these, changed by it"] <= counts["compared with a split by rows"]


@pytest.mark.slow
def test_no_promise_is_broken_by_a_triple_of_each_model() -> None:
    _fuzzed("--triples", str(N_TRIPLES))


def _fuzzed(*arguments: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
