"""Virtual chips, devices and both nested give a model the same bits.

Also where the blocks of a plan have meshes of different shapes, so that what one block leaves on
devices lies otherwise than the next one takes it. Virtual chips are the reference: other tests
compare them with independent models.
"""

import random
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from placed_blocks import TINY_LLAMA, place, plan
from slices import some_slow
from small_machines import NODE, tiered
from tiny_models import checkpoint, oracle

from lpu_jax.errors import LpuError, MeshError, UnknownNameError
from lpu_jax.machine.catalogue import system
from lpu_jax.mesh import ChipMesh, put_on_devices, run_devices
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import FLOAT32, FP16
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.request import Request
from sharding.run.decoding import Decoder
from sharding.run.execute import EXECUTIONS, on_chips, run_block
from sharding.run.forward import forward
from sharding.verify.whole_model import check_whole

#: Sequences and heads, then columns: two axes and one.
SQUARE = Plan(
    group_chips=4,
    attention=AttentionShard(tensor=2, data=2),
    mlp=MlpShard(tensor=4),
    moe=MoeShard(expert=2, tensor=2),
)
#: Positions, then experts that rows travel to, in an order of its own.
POSITIONS = Plan(
    group_chips=4,
    attention=AttentionShard(context=2, tensor=2, order=("replica", "tensor", "context", "data")),
    mlp=MlpShard(tensor=2, replica=2, order=("tensor", "replica")),
    moe=MoeShard(expert=4, dispatch=Dispatch.ALL_TO_ALL),
)
#: More chips than devices: nested, the blocks take six, six and four of them.
DOZEN = Plan(
    group_chips=12,
    attention=AttentionShard(data=3, tensor=2, replica=2, split=Split.COLUMN),
    mlp=MlpShard(tensor=12),
    moe=MoeShard(expert=4, tensor=3),
)


def logits(name: str, the_plan: Plan, execution: str) -> np.ndarray:
    tokens, _ = oracle(name)
    weights = checkpoint(name).weights
    return forward(weights, tiered(3), the_plan, tokens, policy=FP16, execution=execution)


@pytest.mark.parametrize(
    ("name", "the_plan", "executions"),
    some_slow(
        [
            ("gpt_oss", POSITIONS, ("devices",)),
            ("llama_tied", SQUARE, ("devices", "nested")),
            ("deepseek_v3", DOZEN, ("nested",)),
        ],
        count=1,
    ),
)
def test_a_model_has_the_same_bits_however_it_is_run(
    name: str, the_plan: Plan, executions: tuple[str, ...]
) -> None:
    expected = logits(name, the_plan, "virtual")
    for execution in executions:
        np.testing.assert_array_equal(logits(name, the_plan, execution), expected, execution)


def random_plan(seed: int) -> Plan:
    """A plan of 2 to 8 chips, each kind of block over any factors in any order."""
    rng = random.Random(seed)
    n_chips = rng.choice((2, 3, 4, 6, 8))

    def ways(*axes: str) -> dict[str, Any]:
        left, degrees = n_chips, {}
        for axis in rng.sample(axes, len(axes)):
            most = [n for n in range(1, left + 1) if left % n == 0 and (axis != "heads" or n <= 2)]
            degrees[axis] = rng.choice(most)
            left //= degrees[axis]
        degrees["replica"] = left
        return {"tensor" if axis == "heads" else axis: n for axis, n in degrees.items()} | {
            "split": rng.choice(list(Split))
        }

    def shuffled(*axes: str) -> tuple[str, ...]:
        return tuple(rng.sample(axes, len(axes)))

    inner = shuffled("expert", "tensor")
    return Plan(
        group_chips=n_chips,
        attention=AttentionShard(
            **ways("heads", "data", "context"),
            order=shuffled("replica", "data", "context", "tensor"),
        ),
        mlp=MlpShard(**ways("tensor"), order=shuffled("replica", "tensor")),
        moe=MoeShard(
            **ways("expert", "tensor"),
            order=rng.choice([("replica", *inner), (*inner, "replica")]),
        ),
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_a_model_has_the_same_bits_under_any_plan(seed: int) -> None:
    name, the_plan = ("llama", "qwen3_moe", "kimi_k2", "mixtral")[seed], random_plan(seed)
    expected = logits(name, the_plan, "virtual")
    for execution in ("devices", "nested"):
        np.testing.assert_array_equal(logits(name, the_plan, execution), expected, str(the_plan))


@pytest.mark.long
def test_decoding_has_the_same_bits_however_it_is_run() -> None:
    made = []
    for execution in EXECUTIONS:
        decoder = Decoder(
            checkpoint("llama_tied").weights,
            NODE,
            SQUARE,
            [[1, 2, 3], [4, 5]],
            policy=FP16,
            n_new=2,
            execution=execution,
        )
        made.append([decoder.prefill().logits, decoder.advance([6, 7]).logits])
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])


@pytest.mark.long
def test_a_check_of_two_plans_has_the_same_bits_however_it_is_run() -> None:
    """Plans are run side by side, on the same devices."""
    thirds = Plan(group_chips=3, attention=AttentionShard(data=3), mlp=MlpShard(tensor=3))
    hashes = {
        tuple(
            result.output_hash
            for result in check_whole(
                checkpoint("llama_tied").weights,
                NODE,
                [replace(SQUARE, moe=None), thirds],
                policy=FP16,
                token_ids=[1, 2, 3],
                execution=execution,
            )
        )
        for execution in EXECUTIONS
    }
    assert len(hashes) == 1


# --- what moves between meshes --------------------------------------------------------------------


def test_what_lies_on_another_mesh_is_moved_first() -> None:
    """A state that all chips of one axis hold, taken by a program over two axes."""
    long = ChipMesh(axes=(("tensor", 4),), topology=NODE.topology)
    square = ChipMesh(axes=(("data", 2), ("tensor", 2)), topology=NODE.topology)
    specs = (P(), P("data", "tensor"))
    run = jax.jit(run_devices(lambda x, y, *, axes: (x, y), square, specs, specs))
    state, cache = jnp.ones((1, 1)), jnp.arange(16.0).reshape(4, 4)
    lying = put_on_devices(state, long, P())
    out = run(*put_on_devices((lying, cache), square, specs))
    np.testing.assert_array_equal(out[0], state)
    np.testing.assert_array_equal(out[1], cache)


@pytest.mark.parametrize("execution", ["devices", "nested"])
def test_a_block_is_put_where_its_program_runs(execution: str) -> None:
    block = place(TINY_LLAMA, "dense", plan("dense", tensor=4), Request())
    there = on_chips(block, execution)
    for leaf in jax.tree.leaves(there.arguments):
        assert len(leaf.sharding.device_set) == 4
    again = on_chips(there, execution)
    for old, new in zip(
        jax.tree.leaves(there.arguments), jax.tree.leaves(again.arguments), strict=True
    ):
        pointers = [a.addressable_shards[0].data.unsafe_buffer_pointer() for a in (old, new)]
        assert pointers[0] == pointers[1]  # no copy


# --- what is refused ------------------------------------------------------------------------------


def test_a_way_of_running_that_there_is_not_is_named_before_any_work() -> None:
    tokens, _ = oracle("llama")
    weights = checkpoint("llama").weights
    with pytest.raises(UnknownNameError, match="unknown execution 'device'; nearest: devices"):
        forward(weights, NODE, SQUARE, tokens, policy=FLOAT32, execution="device")
    with pytest.raises(UnknownNameError, match="unknown execution 'gpu'"):
        Decoder(weights, NODE, SQUARE, [[1]], policy=FLOAT32, n_new=1, execution="gpu")


def test_a_machine_without_values_or_chips_is_refused() -> None:
    tokens, _ = oracle("llama")
    weights, dozen = checkpoint("llama").weights, DOZEN
    with pytest.raises(LpuError, match="forward: h100x8 is a GPU roofline without values"):
        forward(weights, system("h100x8"), SQUARE, tokens, policy=FLOAT32)
    with pytest.raises(LpuError, match="h100x8 is a GPU roofline without values"):
        place(TINY_LLAMA, "dense", plan("dense", tensor=2), Request(), system=system("h100x8"))
    with pytest.raises(MeshError, match="the axes have 12 chips; the machine has 8"):
        forward(weights, NODE, dozen, tokens, policy=FLOAT32)
    large = place(TINY_LLAMA, "dense", plan("dense", tensor=12), Request(), system=tiered(12))
    with pytest.raises(MeshError, match="12 devices are needed but 8 are available"):
        run_block(TINY_LLAMA, large, execution="devices")
