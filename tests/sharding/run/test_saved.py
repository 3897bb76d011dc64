"""States saved under one plan and restored under another: bits, caches, steps, memory."""

import gc
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placed_blocks import TINY_KIMI, TINY_LLAMA, hidden, plan
from saved_states import DECODE, FP16, STORED, UNEVEN_KIMI, filled_cache, state_of, stored_blocks
from slices import some_slow
from small_machines import tiered

from lpu_jax.errors import WeightsError
from models.blocks import block_chain, is_leaf
from models.config import GqaConfig
from models.layers.linear import Split
from models.policy import POLICIES, policy_named
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.request import Request
from sharding.run.execute import run_attention
from sharding.run.load import StoredBlock, load_block, place_block, store_block
from sharding.run.saved import read_state, restore_state, save_state
from sharding.run.unplaced import BlockState, block_state, restored_block, weight_leaves

#: A layer that sees the last six keys only.
SLIDING = replace(
    TINY_LLAMA,
    attention=GqaConfig(n_heads=4, n_kv_heads=2, head_dim=32, window=6),
    sliding_layers=(0,),
)
_SLOW = pytest.mark.slow
MACHINE = tiered(16)
_ALL = ("embed", "attention", "dense", "moe", "head")


def plans():
    """Two plans whose padding differs in every kind of block."""
    column = Split.COLUMN
    first = Plan(
        group_chips=8,
        attention=AttentionShard(tensor=4, data=2),
        mlp=MlpShard(tensor=8),
        moe=MoeShard(expert=4, tensor=2),
    )
    second = Plan(
        group_chips=9,
        attention=AttentionShard(tensor=3, data=3, split=column),
        mlp=MlpShard(tensor=3, replica=3, split=column),
        moe=MoeShard(expert=3, tensor=3, split=column),
    )
    return first, second


def same_bits(found, expected):
    """Whether two trees hold the same bits in the same types."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


# --- bits -------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("policy", "kinds"),
    [
        ("fp16", _ALL),
        ("nvfp4", ("dense",)),
        *(
            pytest.param(p, _ALL, marks=pytest.mark.slow)
            for p in ("int8", "int4", "mxfp4", "nvfp4")
        ),
        # groups of 128 rows do not fit heads of 32
        pytest.param("fp8", ("embed", "dense", "moe", "head"), marks=pytest.mark.slow),
    ],
)
def test_every_format_restores_under_another_plan_as_if_placed_there(policy, kinds, tmp_path):
    """Bitwise, padding included: codes and all scales; 23 experts split 4 ways, then 3."""
    chain = [b for b in block_chain(UNEVEN_KIMI) if b.kind in kinds]
    first, second = plans()
    source, formats = SyntheticWeights(UNEVEN_KIMI), POLICIES[policy]
    stored = {b: store_block(source, b.kind, b.layer, formats) for b in chain}
    blocks = (
        block_state(UNEVEN_KIMI, place_block(stored[b], MACHINE, first, DECODE), b.layer)
        for b in chain
    )
    save_state(tmp_path, state_of(UNEVEN_KIMI, policy, blocks, plan=first))
    restored = restore_state(tmp_path, UNEVEN_KIMI, MACHINE, second, DECODE, policy=formats)
    assert restored.saved_under == first
    seen = []
    for block, loaded in restored.blocks:
        seen.append(block)
        expected = place_block(stored[block], MACHINE, second, DECODE)
        same_bits(loaded.arguments, expected.arguments)
        assert loaded.in_specs == expected.in_specs
        assert (loaded.mesh, loaded.experts) == (expected.mesh, expected.experts)
    assert seen == chain


def test_every_bit_pattern_of_every_type_survives(tmp_path):
    """NaNs with their payload, zeros with their sign, subnormals: no value is interpreted."""
    rng = np.random.default_rng(0)
    for step, policy in enumerate(("fp16", "fp8", "int8", "mxfp4", "bf16")):
        leaves = weight_leaves(UNEVEN_KIMI, "dense", POLICIES[policy], None)

        def any_bits(leaf):
            values = np.empty(leaf.shape, leaf.dtype)
            return np.frombuffer(rng.bytes(values.nbytes), values.dtype).reshape(values.shape)

        def negative_zeros(leaf):
            size = np.dtype(leaf.dtype).itemsize
            sign = np.frombuffer(b"\0" * (size - 1) + b"\x80", leaf.dtype)  # little-endian
            return np.full(leaf.shape, sign[0])

        blocks = [
            BlockState(
                layer=layer,
                stored=StoredBlock(
                    cfg=UNEVEN_KIMI,
                    kind="dense",
                    policy=POLICIES[policy],
                    weights=jax.tree.map(fill, leaves, is_leaf=is_leaf),
                ),
            )
            for layer, fill in enumerate((any_bits, negative_zeros))
        ]
        save_state(tmp_path, state_of(UNEVEN_KIMI, policy, blocks))
        _, state = read_state(tmp_path, UNEVEN_KIMI, policy=POLICIES[policy], step=step)
        for found, wanted in zip(state.blocks, blocks, strict=True):
            same_bits(dict(found.stored.weights), dict(wanted.stored.weights))


@pytest.mark.parametrize("held", [(), (3, 4, 17, 22)])
def test_a_compact_store_of_experts_stays_compact(held, tmp_path):
    (first, _), source = plans(), SyntheticWeights(UNEVEN_KIMI)
    stored = store_block(source, "moe", 1, FP16, held_experts=held)
    taken = (
        block_state(UNEVEN_KIMI, place_block(stored, MACHINE, first, DECODE), 1) if held else None
    )
    block = taken or BlockState(layer=1, stored=stored)
    save_state(tmp_path, state_of(UNEVEN_KIMI, "fp16", [block]))
    _, state = read_state(tmp_path, UNEVEN_KIMI, policy=FP16)
    (found,) = state.blocks
    assert found.stored.held == held
    same_bits(dict(found.stored.weights), dict(stored.weights))


def test_shares_on_devices_are_saved_and_come_back_on_their_devices(tmp_path):
    source = SyntheticWeights(UNEVEN_KIMI)
    first, second = (
        Plan(
            group_chips=n,
            attention=AttentionShard(replica=n),
            mlp=MlpShard(replica=n),
            moe=MoeShard(expert=n),
        )
        for n in (4, 3)
    )
    block = BlockState(layer=1, stored=store_block(source, "moe", 1, FP16))
    spread = restored_block(block, MACHINE, first, DECODE, None, execution="devices")
    store = spread.arguments[1]["gate_up"]
    assert [shard.data.shape[0] for shard in store.addressable_shards] == [6] * 4
    assert len({shard.device for shard in store.addressable_shards}) == 4
    save_state(
        tmp_path, state_of(UNEVEN_KIMI, "fp16", [block_state(UNEVEN_KIMI, spread, 1)], plan=first)
    )
    restored = restore_state(
        tmp_path, UNEVEN_KIMI, MACHINE, second, DECODE, policy=FP16, execution="devices"
    )
    ((_, loaded),) = restored.blocks
    expected = place_block(block.stored, MACHINE, second, DECODE)
    same_bits(loaded.arguments, expected.arguments)
    store = loaded.arguments[1]["gate_up"]
    whole = np.asarray(expected.arguments[1]["gate_up"])
    for number, shard in enumerate(store.addressable_shards):
        np.testing.assert_array_equal(shard.data, whole[number * 8 : number * 8 + 8])


# --- caches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "first", "second", "name"),
    some_slow(
        [
            (TINY_LLAMA, {"data": 3}, {"tensor": 2}, "fp16+fp8-cache"),
            (TINY_LLAMA, {"tensor": 2, "data": 2}, {"data": 3}, "fp16"),
            (TINY_KIMI, {"tensor": 3}, {"data": 2, "tensor": 2}, "fp16"),
        ],
        count=1,
    ),
)
def test_decoding_goes_on_under_another_plan_with_the_same_bits(cfg, first, second, name, tmp_path):
    """Columns are split, so that no plan moves a rounding: bitwise, hidden state and cache."""
    kind, layer, policy = "attention", 0, policy_named(name)
    source, request = SyntheticWeights(cfg), Request(batch=3, tokens=1, context=320)
    first, second = plan(kind, **first), plan(kind, **second)
    block = load_block(source, MACHINE, first, kind, layer, request, policy=policy)
    cache, positions = block.arguments[2], np.zeros(3, np.int32)
    for step in range(3):
        given = hidden(3, 1, cfg.d_model, seed=step)
        out, cache = run_attention(cfg, block, given, cache, positions)
        positions = positions + 1
    taken = block_state(cfg, block, layer, cache=cache, positions=positions)
    out = np.asarray(out)
    save_state(tmp_path, state_of(cfg, name, [taken], plan=first, positions=positions, hidden=out))
    expected, _ = run_attention(cfg, block, out, cache, positions)

    restored = restore_state(
        tmp_path, cfg, MACHINE, second, replace(request, context=640), policy=policy
    )
    ((_, other),) = restored.blocks
    np.testing.assert_array_equal(restored.positions, [3, 3, 3])
    same_bits(restored.hidden, out)
    np.testing.assert_array_equal(other.arguments[4][:3], positions)
    found, _ = run_attention(cfg, other, out, other.arguments[2], restored.positions)
    same_bits(found, expected)
    assert np.abs(np.asarray(found) - out).max() > 0.01


@settings(max_examples=15)
@given(
    positions=st.lists(st.integers(0, 320), min_size=1, max_size=4),
    ways=st.sampled_from([{"data": 3}, {"tensor": 4}, {"context": 2}, {"data": 2, "context": 3}]),
    context=st.sampled_from([320, 321, 960]),
)
def test_a_cache_keeps_what_later_tokens_see_and_nothing_else(positions, ways, context):
    """Against plain slices: sequence by sequence, the first positions of its own heads."""
    positions = np.asarray(positions, np.int32)
    request = Request(batch=len(positions), tokens=1, context=320)
    loaded = place_block(STORED, MACHINE, plan("attention", tensor=2, data=2), request)
    cache = filled_cache(loaded, 1)
    state = block_state(TINY_LLAMA, loaded, 0, cache=cache, positions=positions)
    kept = () if state.cache is None else state.cache.values()
    assert sum(np.count_nonzero(values) for values in kept) == 2 * 2 * 32 * int(positions.sum())
    other = restored_block(
        state, MACHINE, plan("attention", **ways), replace(request, context=context), positions
    )
    found = {name: np.asarray(values) for name, values in other.arguments[2].items()}
    for i, n in enumerate(positions):
        np.testing.assert_array_equal(found["keys"][i, :2, :, :n], cache["keys"][i, :2, :, :n])
        np.testing.assert_array_equal(found["values"][i, :2, :n], cache["values"][i, :2, :n])
    n_values = 2 * 2 * 32 * int(positions.sum())  # keys and values of two heads of 32
    assert sum(np.count_nonzero(values) for values in found.values()) == n_values


@settings(max_examples=15)
@given(
    positions=st.lists(st.integers(0, 1280), min_size=1, max_size=3),
    longest=st.sampled_from([(1, 1), (1, 400), (400, 1)]),
)
def test_a_ring_keeps_the_keys_of_its_window_at_their_places(positions, longest):
    """Position p lies at p modulo the length of the ring; the next query sees five before it."""
    positions = np.asarray(positions, np.int32)
    stored = replace(STORED, cfg=SLIDING, kind="sliding")
    one = plan("attention", data=1)
    first, second = (
        Request(batch=len(positions), context=1280, most_tokens=most) for most in longest
    )
    loaded = place_block(stored, MACHINE, one, first)

    def ring(block, n_kept):
        """A ring that holds the last positions of each sequence."""
        shapes = {name: leaf.shape for name, leaf in block.arguments[2].items()}
        keys, values = (np.zeros(shapes[name], np.float16) for name in ("keys", "values"))
        length = keys.shape[-1]
        for i, n in enumerate(positions):
            at = np.arange(max(0, n - (n_kept or length)), n)
            keys[i][:, :, at % length] = at + 1
            values[i][:, at % length] = -at[:, None] - 1
        return {"keys": keys, "values": values}

    state = block_state(SLIDING, loaded, 0, cache=ring(loaded, None), positions=positions)
    found = restored_block(state, MACHINE, one, second, positions)
    assert found.arguments[2]["keys"].shape[-1] == (640 if longest[1] == 1 else 960)
    same_bits(found.arguments[2], ring(found, 5))


# --- whole or not at all ------------------------------------------------------------------------


def test_steps_are_numbered_and_the_last_two_stay(tmp_path):
    folder = tmp_path / "new" / "folder"
    for number, expected in ((None, 0), (None, 1), (None, 2), (7, 7)):
        state = state_of(TINY_LLAMA, "fp16", stored_blocks())
        assert save_state(folder, state, step=number) == expected
    assert sorted(path.name for path in folder.iterdir()) == ["2", "7"]
    with pytest.raises(WeightsError, match=r"has no step 1; it has 2, 7"):
        read_state(folder, TINY_LLAMA, policy=FP16, step=1)
    with pytest.raises(WeightsError, match=r"step 7 was given for .*; 8 is the least"):
        save_state(folder, state, step=7)
    (folder / "9").mkdir()
    with pytest.raises(WeightsError, match=r"9 already exists and is not a saved state"):
        save_state(folder, state, step=9)


def test_a_block_that_cannot_be_made_leaves_the_folder_as_it_was(tmp_path):
    def broken():
        yield from stored_blocks()
        raise WeightsError("layer 1 is torn.")

    with pytest.raises(WeightsError, match=r"layer 1 is torn"):
        save_state(tmp_path / "new", state_of(TINY_LLAMA, "fp16", broken()))
    assert not (tmp_path / "new").exists()
    save_state(tmp_path, state_of(TINY_LLAMA, "fp16", stored_blocks()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match=r"layer 1 is torn"):
        save_state(tmp_path, state_of(TINY_LLAMA, "fp16", broken()))
    assert sorted(tmp_path.rglob("*")) == before


def _run(program, **options):
    """Run a program in a process that finds this project and its tests."""
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, cwd=root, check=False, **options)


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path):
    save_state(tmp_path, state_of(TINY_LLAMA, "fp16", list(stored_blocks())))
    before = sorted(tmp_path.rglob("*"))
    # In a process of its own: writes that were under way when one failed end in threads.
    program = f"""
import resource
from placed_blocks import TINY_LLAMA
from saved_states import state_of, stored_blocks
from lpu_jax.errors import WeightsError
from sharding.run.saved import save_state

state = state_of(TINY_LLAMA, "fp16", list(stored_blocks()))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk, for every file
try:
    save_state({str(tmp_path)!r}, state)
except WeightsError as error:
    print(error)
"""
    done = _run(program, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path} cannot be written: File too large.\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_killed_save_leaves_the_step_before_it(tmp_path):
    expected = list(stored_blocks())
    save_state(tmp_path, state_of(TINY_LLAMA, "fp16", expected))
    program = f"""
import os, signal
from placed_blocks import TINY_LLAMA
from models.policy import POLICIES
from models.weights.synthetic import SyntheticWeights
from sharding.run.load import store_block
from sharding.run.saved import State, save_state
from sharding.run.unplaced import BlockState

def blocks():
    for layer in range(3):
        stored = store_block(SyntheticWeights(TINY_LLAMA), "dense", 0, POLICIES["fp16"])
        yield BlockState(layer=layer, stored=stored)
    os.kill(os.getpid(), signal.SIGKILL)

save_state({str(tmp_path)!r}, State(cfg=TINY_LLAMA, policy=POLICIES["fp16"], blocks=blocks()))
"""
    done = _run(program)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the step, and what the killed process left
    step, state = read_state(tmp_path, TINY_LLAMA, policy=FP16)
    assert step == 0
    for found, wanted in zip(state.blocks, expected, strict=True):
        same_bits(dict(found.stored.weights), dict(wanted.stored.weights))
    assert save_state(tmp_path, state_of(TINY_LLAMA, "fp16", stored_blocks())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


# --- one block in memory --------------------------------------------------------------------------


@pytest.mark.slow
def test_one_block_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Whatever their number: the arrays of a block are gone when the next is made or read."""
    from sharding.run import orbax_steps  # slow to import

    read_item = orbax_steps.read_item
    alive = []

    def living():
        if any(reference() is not None for reference in alive):
            gc.collect()
        return sum(reference() is not None for reference in alive)

    def blocks():
        iterator = stored_blocks(layers=4)
        while (block := next(iterator, None)) is not None:
            alive.append(weakref.ref(block.stored.weights["gate_up"]))
            yield block
            del block
            assert living() == 0

    save_state(tmp_path, state_of(TINY_LLAMA, "fp16", blocks()))
    assert len(alive) == 4
    alive.clear()

    def read(*where):
        assert living() == 0
        arrays = read_item(*where)
        alive.append(weakref.ref(arrays["weights.gate_up"]))
        return arrays

    monkeypatch.setattr(orbax_steps, "read_item", read)
    restored = restore_state(
        tmp_path, TINY_LLAMA, MACHINE, plan("dense", tensor=3), DECODE, policy=FP16
    )
    for _ in range(4):
        _, loaded = next(restored.blocks)
        del loaded
    assert next(restored.blocks, None) is None
    assert len(alive) == 4
