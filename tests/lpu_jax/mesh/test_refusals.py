"""What is no mesh, spec, program or array is refused in one sentence, the same however it is run.

The functions are called without the hook that checks annotations in tests: users have none.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from small_machines import NODE, tiered

from lpu_jax import mesh as ways
from lpu_jax.datapath import c2c, vxm
from lpu_jax.datapath.axis import Axis
from lpu_jax.errors import LpuError, MeshError, UnknownNameError
from lpu_jax.machine.catalogue import system
from lpu_jax.mesh import Axes, ChipMesh

TOPOLOGY = NODE.topology
MESH = ChipMesh(axes=(("a", 2), ("b", 2)), topology=TOPOLOGY)
DEVICES = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
X = jnp.arange(8.0).reshape(8, 1)

run_virtual, run_devices, run_nested, trace, put_on_devices, most_devices = (
    inspect.unwrap(getattr(ways, name))
    for name in (
        "run_virtual", "run_devices", "run_nested", "trace", "put_on_devices", "most_devices"
    )
)  # fmt: skip


def same(x: Any, *, axes: Axes) -> Any:
    return x


def pair(x: Any, y: Any, *, axes: Axes) -> Any:
    return x, y


def without_axes(x: Any) -> Any:
    return x


def over(name: str) -> Callable[..., Any]:
    return lambda x, *, axes: c2c.all_reduce(x, axes[name])


def joined(*names: str) -> Callable[..., Any]:
    return lambda x, *, axes: c2c.all_reduce(x, c2c.joined(*(axes[name] for name in names)))


#: program, mesh, specs of arguments, of results, arguments; and the whole sentence
BAD = {
    "a mesh of JAX": (
        (same, DEVICES, P("a"), P("a"), X),
        "mesh must be a ChipMesh, such as ChipMesh(axes=(('a', 2), ('b', 2)), "
        "topology=system('groq-node').topology); an object of type Mesh was given.",
    ),
    "an abstract mesh of JAX": (
        (same, AbstractMesh((4,), ("a",)), P("a"), P("a"), X),
        "mesh must be a ChipMesh, such as ChipMesh(axes=(('a', 4),), "
        "topology=system('groq-node').topology); an object of type AbstractMesh was given.",
    ),
    "no mesh": (
        (same, (("a", 2),), P("a"), P("a"), X),
        "mesh must be a ChipMesh, such as ChipMesh(axes=(('tensor', 4),), "
        "topology=system('groq-node').topology); an object of type tuple was given.",
    ),
    "a program without axes": (
        (without_axes, MESH, P("a"), P("a"), X),
        "the program must take the axes of the mesh; write `def program(x, *, axes)`.",
    ),
    "no program": ((3, MESH, P("a"), P("a"), X), "the program must be a function; 3 was given."),
    "too few arguments": (
        (pair, MESH, P("a"), P("a"), X),
        "the program cannot take 1 arrays and axes=: missing a required argument: 'y'.",
    ),
    "a misspelt axis": (
        (same, MESH, (P("aa"),), P("a"), X),
        "in_specs[0] names 'aa', which is not an axis of the mesh; did you mean 'a'?",
    ),
    "an unknown axis": (
        (same, MESH, P("a"), P(None, ("a", "tensor")), X),
        "out_specs names 'tensor', which is not an axis of the mesh; it has 'a', 'b'.",
    ),
    "an axis twice": (
        (same, MESH, P("a", "a"), P("a"), X),
        f"in_specs is {P('a', 'a')}; an axis can split one dimension only.",
    ),
    "a name for a spec": (
        (same, MESH, "a", P("a"), X),
        "in_specs must be a PartitionSpec, such as P('a'); 'a' was given.",
    ),
    "None for a spec": (
        (same, MESH, (None,), P("a"), X),
        "in_specs[0] is None where args[0] is one array; write a PartitionSpec for each array, or "
        "one for all.",
    ),
    "too few specs": (
        (pair, MESH, (P("a"),), P("a"), X, X),
        "in_specs has 1 entry where args has 2 entries; write a PartitionSpec for each array, or "
        "one for all.",
    ),
    "too many specs": (
        (pair, MESH, (P(), P(), P()), P("a"), X, X),
        "in_specs has 3 entries where args has 2 entries; write a PartitionSpec for each array, "
        "or one for all.",
    ),
    "specs of another tree": (
        (lambda x, *, axes: x["u"], MESH, ({"v": P("a")},), P("a"), {"u": X}),
        "in_specs[0] has ['v'] where args[0] has ['u']; write a PartitionSpec for each array, or "
        "one for all.",
    ),
    "too few specs of results": (
        (pair, MESH, P("a"), (P("a"),), X, X),
        "out_specs has 1 entry where the result has 2 entries; write a PartitionSpec for each "
        "array, or one for all.",
    ),
    "specs for a single result": (
        (same, MESH, P("a"), (P("a"),), X),
        "out_specs has 1 entry where the result is one array; write a PartitionSpec for each "
        "array, or one for all.",
    ),
    "a number": ((same, MESH, P(), P(), 3.0), "args[0] must be an array; 3.0 was given."),
    "words": (
        (same, MESH, P("a"), P("a"), np.array(["u", "v"])),
        "args[0] must be an array of numbers, not of <U1.",
    ),
    "objects": (
        (same, MESH, P("a"), P("a"), np.array([None, None])),
        "args[0] must be an array of numbers, not of object.",
    ),
    "a spec of more dimensions": (
        (same, MESH, P("a", None, "b"), P("a"), X),
        f"args[0] has 2 dimensions but its spec {P('a', None, 'b')} has 3 entries.",
    ),
    "a result with fewer dimensions": (
        (lambda x, *, axes: x[0, 0], MESH, P("a"), P("a"), X),
        f"the result has 0 dimensions but its spec {P('a')} has 1 entries.",
    ),
    "a result that is no array": (
        (lambda x, *, axes: {"n": 3}, MESH, P("a"), P("a"), X),
        "the result['n'] must be an array; 3 was given.",
    ),
    "shares that are not equal": (
        (same, MESH, P(None, ("a", "b")), P("a"), X),
        "args[0]: a dimension of 1 cannot be split 4 ways over 'a', 'b'; pad it first.",
    ),
    "a forgotten all-reduce": (
        (same, MESH, P("b"), P(), X),
        f"the result differs between the chips of axis 'b', which its spec {P()} does not name: "
        "name the axis where its shares lie, or make it the same on all chips with c2c.all_reduce "
        "or c2c.all_gather.",
    ),
    "an all-reduce over too few axes": (
        (
            lambda x, *, axes: {"n": c2c.all_reduce(x, axes["b"])},
            MESH, P(("a", "b")), {"n": P("b")}, X,
        ),
        f"the result['n'] differs between the chips of axis 'a', which its spec {P('b')} does not "
        "name: name the axis where its shares lie, or make it the same on all chips with "
        "c2c.all_reduce or c2c.all_gather.",
    ),
}  # fmt: skip
#: Mistakes inside the program: nothing of how it is run is in the sentence.
BAD_INSIDE = {
    "a misspelt axis": (over("aa"), "unknown mesh axis 'aa'; nearest: a"),
    "inner axis first": (
        joined("b", "a"),
        "c2c.joined: axis 'b' does not lie outside axis 'a' in the mesh; give each axis once, "
        "outermost first.",
    ),
    "an axis with itself": (
        joined("a", "a"),
        "c2c.joined: axis 'a' does not lie outside axis 'a' in the mesh; give each axis once, "
        "outermost first.",
    ),
    "no axes": (
        joined(),
        "c2c.joined: axes of the mesh are needed, outermost first, not none.",
    ),
}
WAYS = {
    "run_virtual": lambda program, mesh, *specs: run_virtual(program, mesh, *specs),
    "run_devices": lambda program, mesh, *specs: run_devices(program, mesh, *specs),
    "run_nested": lambda program, mesh, *specs: run_nested(program, mesh, {"a": 2}, *specs),
    "trace": lambda program, mesh, *specs: partial(trace, program, mesh, *specs),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_the_same_sentence_however_it_is_run(case: str, way: str) -> None:
    (program, mesh, in_specs, out_specs, *args), sentence = BAD[case]
    with pytest.raises(MeshError) as told:
        WAYS[way](program, mesh, in_specs, out_specs)(*args)
    assert str(told.value) == f"{way}: {sentence}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BAD_INSIDE)
def test_a_mistake_inside_the_program_likewise(case: str, way: str) -> None:
    program, sentence = BAD_INSIDE[case]
    with pytest.raises(LpuError) as told:
        WAYS[way](program, MESH, P(("a", "b")), P())(X)
    assert str(told.value) == sentence


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"axes": {"a": 2}}, r"axes must be a tuple .* \(\('tensor', 4\),\); \{'a': 2\} was given"),
        ({"axes": ("a", 2)}, "axes must be a tuple"),
        ({"axes": (("a", 0),)}, "axes must be a tuple"),
        ({"axes": (("a", 2.0),)}, "axes must be a tuple"),
        ({"axes": (("a b", 2),)}, "axes must be a tuple"),
        ({"axes": (("a", 2), ("a", 2))}, "the axes a, a must have different names"),
        ({"axes": (("a", 3), ("b", 3))}, "the axes have 9 chips; the machine has 8"),
        ({"topology": "groq-node"}, r"system\('groq-node'\).topology; an object of type str"),
        ({"topology": NODE}, "an object of type System was given"),
        ({"algorithm": 3}, "algorithm must be the name of one; an object of type int was given"),
    ],
)  # fmt: skip
def test_what_is_no_mesh_is_refused(given: dict[str, Any], complaint: str) -> None:
    make = inspect.unwrap(ChipMesh.__init__)
    with pytest.raises(MeshError, match=complaint):
        make(object.__new__(ChipMesh), **({"axes": (("a", 2),), "topology": TOPOLOGY} | given))


def test_an_algorithm_that_does_not_exist_is_refused() -> None:
    for make in (
        lambda: ChipMesh(axes=(("a", 2),), topology=TOPOLOGY, algorithm="rng"),
        lambda: Axis(names=("a",), size=2, tiers=(), algorithm="rng"),
    ):
        with pytest.raises(UnknownNameError, match="unknown collective 'rng'; nearest: ring"):
            make()


@pytest.mark.parametrize("tiers", [(8, 4), (0,), (-1,), (2, 3)])
def test_levels_that_no_machine_has_are_refused(tiers: tuple[int, ...]) -> None:
    with pytest.raises(MeshError, match="each must be a multiple of the one before"):
        Axis(names=("a",), size=8, tiers=tiers)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize(
    "collective",
    [
        lax.psum,
        lax.pmean,
        lambda x, name: x + lax.axis_index(name),
        lambda x, name: lax.ppermute(x, name, [(0, 1), (1, 0)]),
        lambda x, name: c2c.all_reduce(x, Axis(names=(name,), size=2, tiers=())),
    ],
)
def test_axes_under_names_of_jax_are_refused_in_every_way(collective: Any, name: str) -> None:
    """They would see the chips of one device only."""

    def program(x: jax.Array, *, axes: Any) -> jax.Array:
        del axes
        return collective(x, name)  # type: ignore[no-any-return]

    complaint = "the program has a collective of JAX itself|is not an axis of the running mesh"
    for run in WAYS.values():
        with pytest.raises(MeshError, match=complaint):
            run(program, MESH, P("a"), P("a"))(X)


def test_numbers_of_numpy_are_numbers() -> None:
    mesh = object.__new__(ChipMesh)
    inspect.unwrap(ChipMesh.__init__)(mesh, axes=(("a", np.int64(2)),), topology=TOPOLOGY)
    assert mesh == ChipMesh(axes=(("a", 2),), topology=TOPOLOGY)
    assert most_devices(mesh, np.int32(1)) == {"a": 1}
    run_nested(same, mesh, {"a": np.int64(1)}, P("a"), P("a"))
    for wrong in ("a", 0, 1.5):
        with pytest.raises(MeshError, match=r"most_devices: n_devices=.* was given"):
            most_devices(mesh, wrong)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_types_that_jax_would_narrow_are_refused(dtype: str) -> None:
    with pytest.raises(MeshError, match=rf"args\[0\] is {dtype}\[2\], which JAX would narrow"):
        run_virtual(same, MESH, P("a"), P("a"))(np.zeros(2, dtype))


def test_the_order_of_sums_comes_from_the_machine_alone() -> None:
    with pytest.raises(TypeError, match="topology"):
        ChipMesh(axes=(("a", 2),))
    with pytest.raises(TypeError, match="tiers"):
        ChipMesh(axes=(("a", 2),), topology=TOPOLOGY, tiers=(3,))
    with pytest.raises(TypeError, match="tiers"):
        Axis(names=("a",), size=2)
    big = ChipMesh(axes=(("a", 18),), topology=system("groq-576").topology)
    assert big.tiers == big.as_axes()["a"].tiers == (8,)
    assert ChipMesh(axes=(("a", 73),), topology=system("groq-576").topology).tiers == (8, 72)
    assert ChipMesh(axes=(("a", 8),), topology=system("groq-576").topology).tiers == ()
    assert big == ChipMesh(axes=(("a", 18),), topology=system("groq-1080").topology)
    assert big != ChipMesh(axes=(("a", 18),), topology=system("lpx-rack").topology)


def test_axes_of_two_machines_are_not_joined() -> None:
    other = ChipMesh(axes=(("a", 2), ("b", 2)), topology=tiered(2).topology)
    with pytest.raises(MeshError, match="the axes are of different meshes"):
        c2c.joined(MESH.as_axes()["a"], other.as_axes()["b"])


@pytest.mark.parametrize(
    ("devices", "complaint"),
    [
        ({"b": 2}, "axis 'b' is spread over devices inside 'a', which has several chips on each"),
        (
            {"a": 3},
            "axis 'a' of 2 chips cannot be spread over 3 devices; it must be a divisor of 2",
        ),
        ({"a": 0}, ".* cannot be spread over 0 devices"),
        ({"a": "2"}, ".* cannot be spread over '2' devices"),
        ({"a": True}, ".* cannot be spread over True devices"),
        ({"c": 2}, "devices names 'c', which is not an axis of the mesh; it has 'a', 'b'"),
        (["a"], r"devices must be a dict of axes .*; \['a'\] was given"),
    ],
)
def test_a_spread_that_does_not_exist_is_refused(devices: Any, complaint: str) -> None:
    with pytest.raises(MeshError, match=f"run_nested: {complaint}"):
        run_nested(same, MESH, devices, P("a"), P("a"))
    with pytest.raises(MeshError, match=f"put_on_devices: {complaint}"):
        put_on_devices(X, MESH, P("a"), devices)


def test_too_few_devices_are_counted() -> None:
    large = ChipMesh(axes=(("a", 9),), topology=tiered(9).topology)
    with pytest.raises(MeshError, match="run_devices: 9 devices are needed but 8 are available"):
        run_devices(same, large, P("a"), P("a"))
    with pytest.raises(MeshError, match="put_on_devices: 9 devices are needed"):
        put_on_devices(jnp.ones(9), large, P("a"))


@pytest.mark.parametrize(
    ("mesh", "specs", "complaint"),
    [
        (DEVICES, P("a"), "mesh must be a ChipMesh"),
        (MESH, P("aa"), "specs names 'aa'"),
        (MESH, {"u": P()}, r"specs has \['u'\] where values is one array"),
        (MESH, P(None, "a"), "values: a dimension of 1 cannot be split 2 ways over 'a'"),
    ],
)
def test_what_cannot_be_put_on_devices_is_refused(mesh: Any, specs: Any, complaint: str) -> None:
    with pytest.raises(MeshError, match=f"put_on_devices: {complaint}"):
        put_on_devices(X, mesh, specs)


def test_a_program_may_name_its_axes_as_it_likes() -> None:
    def anything(*shares: Any, **given: Any) -> Any:
        return vxm.add(shares[0], shares[0])

    np.testing.assert_array_equal(run_virtual(anything, MESH, P("a"), P("a"))(X), 2 * X)
    assert most_devices(MESH, 3) == {"a": 2, "b": 1}


def test_a_trace_may_leave_its_results_where_they_lie() -> None:
    assert trace(same, MESH, P("a"), None, X).out_avals[0].shape == (4, 1)
