"""Every public function of numerics and datapath, called with one argument of a wrong kind.

Functions are found by introspection, and their arguments made from their annotations, so that a new
function is tested without a word here unless its arguments depend on each other. The judge of what
may be accepted is not ours: beartype and jaxtyping say whether a value is one of the annotation.
`checked` is above their hook, so what is raised here is what a user sees.
"""

import functools
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from beartype.door import is_bearable
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from jaxtyping import AbstractArray, Key
from slices import some_slow

import lpu_jax.datapath
import lpu_jax.numerics
from lpu_jax.datapath.axis import Axis
from lpu_jax.datapath.work import Hardware
from lpu_jax.errors import LpuError
from lpu_jax.numerics.formats import E4M3FN, FP32, INT8, Format
from lpu_jax.numerics.quantized import QuantizedArray, quantize
from lpu_jax.numerics.schemes import MXFP4, NVFP4, Scheme

#: Parts of lowerings: they take what other functions of the package have made or checked.
INNER = {
    "algorithms",
    "arithmetic",
    "certificate",
    "portable",
    "repair",
    "residues",
    "tensor_core_plain",
    "tensor_core_rules",
    "tensor_core_steps",
    "tiles",
    "wide",
}
#: What makes operations and prices them: for those who extend the package.
INNER |= {"primitive", "work", "alu", "chip_sums"}

#: The same, of modules that others use too.
INNER_FUNCTIONS = {"mxm.batching_rule", "tensor_core.scaled_matmul"}

N_CHIPS = 2


def public_functions() -> dict[str, Callable[..., Any]]:
    """Return the public functions of both packages by name."""
    found = {}
    for package in (lpu_jax.numerics, lpu_jax.datapath):
        for info in pkgutil.iter_modules(package.__path__):
            if info.name in INNER:
                continue
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, function in vars(module).items():
                is_own = inspect.isfunction(function) and function.__module__ == module.__name__
                # Checks raise by design; a cost rule begins with the machine it asks.
                full_name = f"{info.name}.{name}"
                if not is_own or full_name in INNER_FUNCTIONS:
                    continue
                if not name.startswith(("_", "check_")) and not is_cost(function):
                    found[full_name] = function
    return found


def is_cost(function: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    return bool(parameters) and parameters[0].annotation is Hardware


FUNCTIONS = public_functions()

# --- right arguments ------------------------------------------------------------------------------


@functools.cache
def special() -> dict[str, dict[str, Any]]:
    """Return arguments that annotations do not tell, by function; made when a test needs them."""
    return {
        "accumulate.product_kind": {"x_dtype": "float16", "w_dtype": "int8"},
        "accumulate.matmul": {"x": jnp.ones((2, 4), jnp.int8), "w": jnp.ones((4, 3), jnp.int8)},
        "blocks.to_blocks": {"axis": -1},
        "blocks.from_blocks": {"axis": -1, "length": 5},
        "blocks.block_maxima": {"axis": -1},
        "blocks.float_scales": {"scheme": NVFP4},
        "c2c.all_gather": {"dim": 0},
        "c2c.all_to_all": {"dim": 0},
        "c2c.reduce_scatter": {"dim": 0},
        "c2c.tree_reduce_scatter": {"dim": 0},
        "formats.floating": {"exponent_bits": 4, "mantissa_bits": 3},
        "formats.integer": {"bits": 8},
        "mem.append": {"axis": 1, "positions": jnp.zeros(4, jnp.int32)},
        "mem.append_ring": {"axis": 1},
        "mem.append_run": {"axis": 1},
        "mem.ring_view": {"axis": 1},
        "mem.pad_rows": {"n": 6},
        "mxm.matmul": {"x": jnp.ones((2, 4), jnp.int8), "w": jnp.ones((4, 3), jnp.int8)},
        "mxm.wide_matmul": {
            "x": jnp.ones((2, 4), jnp.float16),
            "w": jnp.ones((4, 3), jnp.int8),
        },
        "mxm.widened": {},
        "quantized.partition": {"spec": PartitionSpec("x")},
        "quantized.quantize": {"scheme": "mxfp4"},
        "recurrence.short_convolution": {"before": jnp.ones((4, 3, 4), jnp.float32)},
        "rounding.to_signed": {"fmt": INT8},
        "scaled.fp8_product": {
            "x": jnp.ones((2, 4), jnp.float8_e4m3fn),
            "w": quantize(jnp.ones((4, 3), jnp.float32), "fp8"),
        },
        "scaled.wide_fp8_product": {
            "x": jnp.ones((2, 4), jnp.float8_e4m3fn),
            "w": quantize(jnp.ones((4, 3), jnp.float32), "fp8"),
        },
        "scaled.int8_product": {"w": quantize(jnp.ones((4, 3), jnp.float32), "int8")},
        "schemes.block_floating_point": {"block_rows": 16, "mantissa_bits": 3},
        "schemes.scheme_named": {"name": "mxfp4"},
        "selection.keep_groups": {"n_groups": 2},
        "sxm.rearrange": {
            "x": jnp.ones((4, 4), jnp.float32),
            "pattern": "b (n h) -> n b h",
            "n": 2,
        },
        "sxm.split": {"sizes": (1, 3)},
        "tensor_core.kind_of": {"x_dtype": "float16", "w_dtype": "float16"},
        "tensor_core.matmul": {
            "x": jnp.ones((2, 4), jnp.float16),
            "w": jnp.ones((4, 3), jnp.float16),
        },
        "wires.reduce_scatter": {"dim": 0},
        "tensor_core.scaled_kind_of": {"x": NVFP4, "w": NVFP4},
    }


@functools.cache
def right_arguments(name: str) -> dict[str, Any]:
    """Return arguments that a function accepts; those with defaults are left out."""
    own = special().get(name, {})
    made = {}
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.name not in own and parameter.default is parameter.empty:
            made[parameter.name] = right_value(parameter.annotation)
    return made | own


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def right_value(annotation: Any) -> Any:
    """Return a value of an annotation."""
    first = members(annotation)[0]
    if isinstance(first, type) and issubclass(first, AbstractArray):
        return right_array(first)
    if get_origin(first) is Literal:
        return get_args(first)[0]
    if get_origin(first) is Annotated:
        return 1
    if get_origin(first) is Sequence:
        return [1.0, 2.0]
    return {
        int: 1,
        bool: True,
        str: "name",
        Fraction: Fraction(1, 3),
        jax.Array: jnp.ones((4, 4), jnp.float32),
        Format: E4M3FN,
        Scheme: MXFP4,
        QuantizedArray: quantize(jnp.ones((4, 3), jnp.float32), "int8"),
        Axis: Axis(names=("chip",), size=N_CHIPS, tiers=()),
    }[first]


def right_array(annotation: Any) -> jax.Array:
    """Return ones of 4 in each dimension; zeros where they are addresses."""
    dims = annotation.dim_str.split()
    shape = [
        *(int(d) if d.isdecimal() else 4 for d in dims if not d.startswith(("*", "..."))),
        *(4 for d in dims if d.startswith(("*", "..."))),
    ]
    if annotation.dtype is Key:
        return jax.random.key(0)
    names = annotation.dtypes if isinstance(annotation.dtypes, Sequence) else ("float32",)
    dtype = next(d for d in ("float32", "float16", "int32", "bool", "uint32") if d in names)
    return (jnp.zeros if dtype == "int32" else jnp.ones)(shape, dtype)


def trace(name: str, arguments: Mapping[str, Any]) -> None:
    """Call a function without computing anything; its arguments still have values."""

    def traced() -> None:
        call(name, arguments)

    jax.make_jaxpr(traced)()


def call(name: str, arguments: Mapping[str, Any]) -> Any:
    """Call a function as a user would: a collective on a mesh, exact sums with 64-bit types."""
    function = FUNCTIONS[name]
    rest = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.VAR_POSITIONAL
    ]
    named = {key: value for key, value in arguments.items() if key not in rest}
    positional = [arguments[key] for key in rest]
    bound = functools.partial(function, *positional, **named)
    if name.startswith(("accumulate.", "fused.")):
        with jax.enable_x64(True):
            return bound()
    if name.startswith(("c2c.", "wires.")) and name != "c2c.joined":
        chips = jnp.zeros(N_CHIPS)
        return jax.vmap(lambda _: bound(), axis_name="chip")(chips)
    return bound()


@pytest.mark.first(32)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_made_from_annotations_are_accepted(name):
    trace(name, right_arguments(name))


# --- wrong ones -----------------------------------------------------------------------------------


class Stranger:
    """An object whose text would fill a screen."""

    def __repr__(self) -> str:
        return "a stranger\n" * 100


@functools.cache
def without_scheme() -> QuantizedArray:
    """Return a stored array whose scheme is none: past the hook, which knows the annotation."""
    array = quantize(jnp.ones((4, 3), jnp.float32), "int8")
    object.__setattr__(array, "scheme", "int8")
    return array


@functools.cache
def objects() -> list[Any]:
    """Return what is no array."""
    return [
        *(None, True, 0, -3, 7, 2**31, 2**70, -(2**70), 0.5, float("nan"), 1e300, 1 + 2j),
        *("rne", "fp16", "tensor", "a\nb", "x" * 1000, b"x", [], [1, 2], (), (1, -2), {}, {1: 2}),
        *(Stranger(), Stranger, len, ..., np.float32, slice(1)),
        *(np.int64(2**40 + 1), np.float64(1e300), np.complex64(1j), np.bool_(True), np.str_("a")),
        *(np.longdouble(1), np.int8(-1), np.float16(1), Fraction(1, 3), [1.0, None], ["1"]),
        *(
            FP32,
            MXFP4,
            PartitionSpec("x"),
            Axis(names=("other",), size=2, tiers=()),
            jax.random.key(0),
        ),
        quantize(jnp.ones((4, 3), jnp.float32), "mxfp4"),
        QuantizedArray(codes=None, scales=None, scheme=MXFP4),
        without_scheme(),
        *(jax.ShapeDtypeStruct((4, 4), jnp.float32), np.dtype("float32")),
    ]


TYPES = [
    *("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"),
    *("complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "U1", "object", ">f4", "M8[s]"),
]
SHAPES = [(), (0,), (3,), (4, 4), (2, 3), (1, 2, 3), (4, 4, 4), (4, 1, 4, 4, 1)]


def arrays_of(dtype: Any, shape: tuple[int, ...]) -> list[Any]:
    """Return an array of NumPy's, and one of JAX's where it has the type."""
    array = np.zeros(shape, dtype)
    is_jax = array.dtype.kind in "biufcV" and array.dtype.isnative and array.itemsize < 8
    return [array, jnp.asarray(array)] if is_jax else [array]


@functools.cache
def arrays() -> list[Any]:
    """Return arrays of every type and shape."""
    return [a for dtype in TYPES for shape in SHAPES for a in arrays_of(dtype, shape)]


@functools.cache
def few() -> list[Any]:
    """Return one of each kind, for the test that is run every time."""
    return [
        *(None, True, 7, -3, 2**70, 0.5, 1e300, 1 + 2j, "fp16", "a\nb", [1, 2], (), {}, Stranger()),
        *(np.int64(2**40 + 1), np.float64(1e300), np.float16(1), FP32, MXFP4, jax.random.key(0)),
        *(np.zeros((2, 3), dtype) for dtype in ("int32", "int64", "float64", "object")),
        *(jnp.zeros((2, 3), dtype) for dtype in ("bool", "int8", "float16")),
        *(jnp.zeros(5, jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32), without_scheme()),
    ]


def is_of(value: Any, annotation: Any) -> bool:
    """Whether beartype and jaxtyping take a value for one of the annotation."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcV":
        if value.dtype.itemsize == 8 and value.dtype.kind != "c":
            return any(m in (int, float, np.number) for m in members(annotation))
        value = jnp.asarray(value)
    for member in members(annotation):
        if get_origin(member) is Annotated:  # lengths: what a number is, said again
            numbers = value if isinstance(value, tuple) else (value,)
            if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
                return True
        elif member in (float, np.number):
            if isinstance(value, float | int) or (isinstance(value, jax.Array) and not value.ndim):
                return True
        elif member is int and isinstance(value, jax.Array):
            return not value.ndim and jnp.issubdtype(value.dtype, jnp.integer)
        elif is_bearable(value, member):
            return True
    return False


def try_one(
    name: str, argument: str, value: Any, run: Callable[[str, Mapping[str, Any]], Any]
) -> Any:
    """Call with one argument replaced: it is refused in a sentence, or it is one of its kind."""
    right = right_arguments(name)
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    try:
        got = run(name, {**right, argument: value})
    except LpuError as error:
        assert_is_a_sentence(str(error), name)
        return None
    annotation = parameters[argument].annotation
    assert annotation is Any or is_of(value, annotation), f"{argument}={value!r} was accepted"
    return got


def assert_is_a_sentence(message: str, name: str) -> None:
    assert "\n" not in message, message
    assert message.endswith(".") or message.startswith("unknown"), message  # ends with names
    assert len(message) < 300, message
    assert "Traceback" not in message
    module, _, function = name.partition(".")
    names = (name, function, module, "quantised array", "mxm.matmul", "scheme", "format", "c2c")
    assert message.startswith(names) or function in message or "unknown" in message, message


@pytest.mark.first(2)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_argument_is_refused_in_one_sentence(name):
    for argument in inspect.signature(FUNCTIONS[name]).parameters:
        for value in few():
            try_one(name, argument, value, trace)


@pytest.mark.parametrize("name", some_slow(list(FUNCTIONS), count=36))
@given(data=st.data())
@settings(max_examples=40)
def test_any_wrong_argument_is_refused_in_one_sentence(name, data):
    argument = data.draw(st.sampled_from(list(inspect.signature(FUNCTIONS[name]).parameters)))
    simple = st.one_of(
        *(st.integers(-(2**40), 100), st.floats(), st.complex_numbers(), st.text(), st.binary()),
        *(st.lists(st.floats()), st.tuples(st.integers(-2, 9)), st.decimals(), st.fractions()),
        *(st.sampled_from(arrays()), st.sampled_from(objects())),
    )
    value = data.draw(simple)
    got = try_one(name, argument, value, call)
    if got is not None and type(value) is np.ndarray:
        expected = call(name, {**right_arguments(name), argument: jnp.asarray(value)})
        jax.tree.map(np.testing.assert_array_equal, got, expected)
