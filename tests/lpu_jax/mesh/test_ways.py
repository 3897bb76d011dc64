"""Virtual chips, devices and both nested mean the same, whatever the mesh, specs and program.

The oracle is a plain loop in NumPy: every chip has its shares, runs the program step by step beside
the others, and leaves its results in its places. Values are small integers, so that sums are exact
and a share in the wrong place shows.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from small_machines import NODE

from lpu_jax.datapath import c2c, vxm
from lpu_jax.errors import MeshError
from lpu_jax.mesh import (
    Axes,
    ChipMesh,
    most_devices,
    put_on_devices,
    run_devices,
    run_nested,
    run_virtual,
)

N_DEVICES = 8
#: Operations of a program; all but the first cross chips.
STEPS = ("double", "all_reduce", "all_gather", "reduce_scatter", "all_to_all")
Chip = tuple[int, ...]
Shares = dict[Chip, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A mesh, a program of some steps over runs of its axes, and how it is split."""

    axes: tuple[tuple[str, int], ...]
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    in_spec: tuple[tuple[str, ...], ...]  #: axes of each of two dimensions
    out_spec: tuple[tuple[str, ...], ...]

    @property
    def mesh(self) -> ChipMesh:
        return ChipMesh(axes=self.axes, topology=NODE.topology)

    @property
    def specs(self) -> tuple[P, P]:
        made = (P(*(names or None for names in spec)) for spec in (self.in_spec, self.out_spec))
        return tuple(made)  # type: ignore[return-value]

    def program(self, x: jax.Array, *, axes: Axes) -> jax.Array:
        for kind, names in self.steps:
            if kind == "double":
                x = vxm.add(x, x)
                continue
            run = c2c.joined(*(axes[name] for name in names))
            x = (
                c2c.all_reduce(x, run)
                if kind == "all_reduce"
                else getattr(c2c, kind)(x, run, dim=-1)
            )
        return x


# --- the oracle ---------------------------------------------------------------------------------


def chips_of(case: Case) -> list[Chip]:
    return list(itertools.product(*(range(size) for _, size in case.axes)))


def places(case: Case, spec: Any, chip: Chip, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a chip's share lies in a global array of a shape."""
    names, sizes = [name for name, _ in case.axes], dict(case.axes)
    found = []
    for axes, length in zip(spec, shape, strict=True):
        number, ways = 0, 1
        for name in axes:
            number, ways = number * sizes[name] + chip[names.index(name)], ways * sizes[name]
        found.append(slice(number * length // ways, (number + 1) * length // ways))
    return tuple(found)


def step(case: Case, kind: str, along: tuple[str, ...], held: Shares) -> Shares:
    if kind == "double":
        return {chip: 2 * x for chip, x in held.items()}
    numbers = [i for i, (name, _) in enumerate(case.axes) if name in along]
    out = {}
    for chip in held:
        others = [
            other
            for other in held  # in chip order, as `held` is
            if all(other[i] == chip[i] for i in range(len(chip)) if i not in numbers)
        ]
        parts, own = [held[other] for other in others], others.index(chip)
        match kind:
            case "all_reduce":
                out[chip] = sum(parts)
            case "all_gather":
                out[chip] = np.concatenate(parts, axis=-1)
            case "reduce_scatter":
                out[chip] = np.split(sum(parts), len(parts), axis=-1)[own]
            case "all_to_all":
                sent = [np.split(part, len(parts), axis=-1)[own] for part in parts]
                out[chip] = np.concatenate(sent, axis=-1)
    return out


def expected(case: Case, x: np.ndarray) -> np.ndarray | None:
    """The global result; None if chips differ that the spec calls the same."""
    held = {chip: x[places(case, case.in_spec, chip, x.shape)] for chip in chips_of(case)}
    for kind, names in case.steps:
        held = step(case, kind, names, held)
    share = next(iter(held.values())).shape
    sizes = dict(case.axes)
    whole = tuple(
        length * math.prod(sizes[name] for name in names)
        for length, names in zip(share, case.out_spec, strict=True)
    )
    out = np.full(whole, -1.0, np.float32)
    for chip, result in held.items():
        at = places(case, case.out_spec, chip, whole)
        if np.any(out[at] != -1) and np.any(out[at] != result):
            return None
        out[at] = result
    return out


def nestings(case: Case) -> Iterator[dict[str, int]]:
    """Every legal spread over devices: only the last spread axis has several chips on a device."""
    divisors = [[n for n in range(1, size + 1) if size % n == 0] for _, size in case.axes]
    for counts in itertools.product(*divisors):
        inside = [size // n for (_, size), n in zip(case.axes, counts, strict=True)]
        if not any(
            inside[i] > 1 and counts[j] > 1
            for i, j in itertools.combinations(range(len(counts)), 2)
        ):
            yield {name: n for (name, _), n in zip(case.axes, counts, strict=True)}


# --- cases --------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_axes = draw(st.integers(1, 3))
    names, axes, left = ("a", "b", "c")[:n_axes], [], N_DEVICES
    for name in names:
        size = draw(st.sampled_from([n for n in (2, 1, 3, 4) if n <= left]))
        axes.append((name, size))
        left //= size

    def spec() -> tuple[tuple[str, ...], ...]:
        order = draw(st.permutations(names))
        cut = sorted(draw(st.lists(st.integers(0, n_axes), min_size=2, max_size=2)))
        return tuple(order[: cut[0]]), tuple(order[cut[0] : cut[1]])

    subsets = [c for n in range(1, n_axes + 1) for c in itertools.combinations(names, n)]
    steps = draw(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(subsets)), max_size=3))
    return Case(axes=tuple(axes), steps=tuple(steps), in_spec=spec(), out_spec=spec())


def check(case: Case, nested: Iterable[dict[str, int]]) -> bool:
    """Run a case in every way and compare with the oracle; say whether it runs at all."""
    sizes = dict(case.axes)
    rows = columns = math.prod(sizes.values())
    for kind, names in case.steps:  # that cut a share of the last dimension further
        columns *= math.prod(sizes[n] for n in names if kind in ("reduce_scatter", "all_to_all"))
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) % 251 + 1
    want = expected(case, x)
    in_spec, out_spec = case.specs
    runs = {
        "virtual": run_virtual(case.program, case.mesh, in_spec, out_spec),
        "devices": run_devices(case.program, case.mesh, in_spec, out_spec),
    }
    for devices in nested:
        runs[f"nested {devices}"] = run_nested(case.program, case.mesh, devices, in_spec, out_spec)
    told = {}
    for name, run in runs.items():
        try:
            got = jax.jit(run)(x)
        except MeshError as refusal:
            told[name] = str(refusal).partition(": ")[2]
            continue
        assert want is not None, name
        np.testing.assert_array_equal(got, want, err_msg=name)
    # Refused in no way, or in all in the same words: a result that was not proven to be the same.
    assert len(set(told.values())) <= 1, told
    assert len(told) in (0, len(runs)), told
    assert all("differs between the chips" in sentence for sentence in told.values())
    assert told or want is not None
    return not told


AXES = (("a", 2), ("b", 2))
KNOWN = {
    "a dimension cut in another order than the chips'": Case(
        AXES, (("double", ("a",)),), (("b", "a"), ()), (("b", "a"), ())
    ),
    "results in another order than the chips'": Case(
        AXES, (("all_gather", ("a", "b")),), ((), ("b", "a")), ((), ())
    ),
    "results along an axis that splits no argument": Case(AXES, (), (("a",), ()), (("a",), ("b",))),
    "a sum over an axis that splits no argument": Case(
        AXES, (("all_reduce", ("b",)),), (("a",), ()), (("a",), ())
    ),
    "shares along an axis that splits no argument": Case(
        AXES, (("reduce_scatter", ("b",)),), (("a",), ()), (("a",), ("b",))
    ),
    "results that are not the same": Case(AXES, (), (("a",), ()), ((), ())),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_way_of_running_means_the_same(name: str) -> None:
    assert check(KNOWN[name], [{"a": 2}]) == (name != "results that are not the same")


@settings(max_examples=2)  # each compiles a program for every way
@given(case=cases())
def test_every_way_of_running_means_the_same_for_any_mesh(case: Case) -> None:
    check(case, list(nestings(case))[:1])


@pytest.mark.slow
@settings(max_examples=60)
@given(case=cases())
def test_every_way_of_running_means_the_same_for_many_meshes(case: Case) -> None:
    check(case, nestings(case))


def test_the_oracle_sees_a_wrong_order() -> None:
    x = np.arange(16.0, dtype=np.float32).reshape(4, 4)
    right = Case(AXES, (), (("b", "a"), ()), (("b", "a"), ()))
    np.testing.assert_array_equal(expected(right, x), x)
    crossed = Case(AXES, (), (("b", "a"), ()), (("a", "b"), ()))
    np.testing.assert_array_equal(expected(crossed, x), x[[0, 2, 1, 3]])
    assert expected(Case(AXES, (), (("a",), ()), ((), ())), x) is None


# --- what lies on devices -------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [None, {"a": 2}, {}])
def test_arrays_put_on_devices_are_run_without_a_copy(devices: dict[str, int] | None) -> None:
    mesh = ChipMesh(axes=(("a", 2), ("b", 4)), topology=NODE.topology)
    spec = P(None, ("b", "a"))
    x = jnp.arange(16.0).reshape(2, 8)
    put = put_on_devices({"x": x}, mesh, spec, devices)["x"]
    n_devices = 8 if devices is None else math.prod(devices.values())
    assert len(put.sharding.device_set) == n_devices
    again = put_on_devices(put, mesh, spec, devices)
    assert again.sharding == put.sharding
    np.testing.assert_array_equal(put, x)


@pytest.mark.parametrize(
    ("axes", "n_devices", "expected"),
    [
        ((("a", 2), ("b", 4)), 8, {"a": 2, "b": 4}),
        ((("a", 2), ("b", 4)), 7, {"a": 2, "b": 2}),
        ((("a", 4), ("b", 2)), 3, {"a": 2, "b": 1}),  # no axis inside one that is not wholly spread
        ((("a", 1), ("b", 6)), 4, {"a": 1, "b": 3}),
        ((("a", 8),), 1, {"a": 1}),
    ],
)
def test_as_many_devices_as_can_be(
    axes: tuple[tuple[str, int], ...], n_devices: int, expected: dict[str, int]
) -> None:
    mesh = ChipMesh(axes=axes, topology=NODE.topology)
    assert most_devices(mesh, n_devices) == expected
    run_nested(lambda x, *, axes: x, mesh, expected, P(), P())  # a spread that exists
