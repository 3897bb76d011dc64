"""Arguments of public functions, checked once where they enter, by the functions' annotations.

`checked` reads the annotations of a function and holds its callers to them: array types, ranks and
shared lengths, words, classes, whole numbers. Helpers check what annotations cannot say. NumPy
arrays and scalars of an allowed type become JAX arrays; lists and 64-bit types, which JAX would
narrow silently, are refused. Not checked: results, and the values of arrays while a program
is traced, since there are none.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.sharding import PartitionSpec
from jaxtyping import AbstractArray, Bool, Key, Num, Shaped

from .errors import LpuError
from .predicates import is_concrete, may_equal, narrows

P = ParamSpec("P")
R = TypeVar("R")

#: The most characters of a value that a message repeats.
_MOST_SHOWN = 60
_REFUSED = object()
_ARRAY = jax.Array
#: Not NumPy's long double, which Python has no number for.
_NUMBER_TYPES = (float, int, np.integer, np.float16, np.float32)
#: Lengths that named dimensions were found to have, for one call.
Lengths = dict[str, Any]
_Check = Callable[[Any, Lengths], Any]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse arguments that its annotations do not allow.

    Its body may rely on them: an `Array` is a JAX array, an `int` is one.

    Raises:
        TypeError: when the function is defined, if an annotation is of a kind unknown here.
    """
    caller = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    ordered: list[_Check] = []
    by_name: dict[str, _Check] = {}
    rest: _Check | None = None
    kinds_of_rest: tuple[_Kind, ...] = ()
    for name, found in inspect.signature(function).parameters.items():
        if found.annotation is inspect.Parameter.empty:
            raise TypeError(f"{caller}: {name} has no annotation")
        check = _check(caller, name, _kinds(found.annotation))
        if found.kind is found.VAR_POSITIONAL:
            rest = check
        elif found.kind is found.VAR_KEYWORD:
            kinds_of_rest = _kinds(found.annotation)
        else:
            by_name[name] = check
            if found.kind is not found.KEYWORD_ONLY:
                ordered.append(check)

    @wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        lengths: Lengths = {}
        # Too many or unknown arguments are left for Python to refuse.
        taken = [check(value, lengths) for check, value in zip(ordered, args)]  # noqa: B905
        if len(taken) < len(args):
            more = args[len(taken) :]
            taken.extend(more if rest is None else [rest(value, lengths) for value in more])
        for name, value in kwargs.items():
            own = by_name.get(name) or _check(caller, name, kinds_of_rest)
            kwargs[name] = own(value, lengths)
        return function(*taken, **kwargs)

    return checking


def check_fields(instance: Any) -> None:
    """Refuse fields of a frozen dataclass that its annotations do not allow, in `__post_init__`.

    Raises:
        LpuError: with the first such field.
    """
    cls: Any = type(instance)
    for name, check in _field_checks(cls):
        given = getattr(instance, name)
        taken = check(given, {})
        if taken is not given:
            object.__setattr__(instance, name, taken)


@cache
def _field_checks(cls: Any) -> tuple[tuple[str, _Check], ...]:
    return tuple((f.name, _check(cls.__name__, f.name, _kinds(f.type))) for f in fields(cls))


def _check(caller: str, name: str, kinds: "tuple[_Kind, ...]") -> _Check:
    """Make what returns a value as the function sees it, or raises."""
    takes = tuple(kind.take for kind in kinds)

    def check(value: Any, lengths: Lengths) -> Any:
        for take in takes:
            taken = take(value, lengths)
            if taken is not _REFUSED:
                return taken
        allowed = " or ".join(kind.words(lengths) for kind in kinds)
        raise LpuError(f"{caller}: {name}={described(value)} was given; it must be {allowed}.")

    return check if kinds else lambda value, lengths: value


# --- kinds of value -------------------------------------------------------------------------------


class _Kind(ABC):
    """A kind of value: how it is recognised, and what messages call it."""

    @abstractmethod
    def take(self, value: Any, lengths: Lengths) -> Any:
        """Return the value, converted where that changes nothing, or `_REFUSED`."""

    @abstractmethod
    def words(self, lengths: Lengths) -> str:
        """Return what messages call the kind."""


@dataclass(frozen=True, slots=True)
class _Arrays(_Kind):
    """Arrays of some types; the dimensions are names, lengths, and "..." or "*name" for many."""

    type_words: str
    dtypes: frozenset[Any]  #: empty for random keys
    dims: tuple[str, ...]
    variadic: int | None  #: which of the dimensions stands for many
    takes_any_shape: bool

    def take(self, value: Any, lengths: Lengths) -> Any:
        if isinstance(value, _ARRAY):
            array = value
            if array.dtype not in self.dtypes and not self._is_key(array):
                return _REFUSED
        elif type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic):
            if value.dtype not in self.dtypes or narrows(value.dtype):
                return _REFUSED
            array = jnp.asarray(value)
        else:
            return _REFUSED
        return array if self.takes_any_shape or self._fits(array.shape, lengths) else _REFUSED

    def _is_key(self, array: jax.Array) -> bool:
        return not self.dtypes and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)

    def _fits(self, shape: tuple[Any, ...], lengths: Lengths) -> bool:
        """Whether the dimensions are as many as allowed and as long as those of other arguments."""
        pairs = list(zip(self.dims, shape, strict=False))
        if self.variadic is None:
            if len(shape) != len(self.dims):
                return False
        else:
            n_after = len(self.dims) - 1 - self.variadic
            if len(shape) < len(self.dims) - 1:
                return False
            end = len(shape) - n_after
            pairs = [
                *pairs[: self.variadic],
                (self.dims[self.variadic], shape[self.variadic : end]),
                *zip(self.dims[self.variadic + 1 :], shape[end:], strict=True),
            ]
        return all(_agree(name, length, lengths) for name, length in pairs)

    def words(self, lengths: Lengths) -> str:
        if self.takes_any_shape:
            return self.type_words
        known = ", ".join(f"{d}={lengths[d]}" for d in self.dims if d in lengths)
        return f"{self.type_words} [{', '.join(self.dims)}]" + (f" with {known}" if known else "")


def _agree(name: str, length: Any, lengths: Lengths) -> bool:
    """Note the length of a dimension, or compare it with the one that was noted."""
    if name in ("...", "_"):
        return True
    if name.isdecimal():
        return not isinstance(length, int) or length == int(name)
    before = lengths.setdefault(name, length)
    # Symbolic lengths are compared when the program has numbers.
    return before is length or may_equal(before, length)


@dataclass(frozen=True, slots=True)
class _Instances(_Kind):
    """Objects of a class."""

    cls: type

    def take(self, value: Any, lengths: Lengths) -> Any:
        return value if isinstance(value, self.cls) else _REFUSED

    def words(self, lengths: Lengths) -> str:
        if self.cls is NoneType:
            return "None"
        names = {str: "a string", bool: "True or False", PartitionSpec: "a PartitionSpec"}
        return names.get(self.cls, with_article(self.cls.__name__))


@dataclass(frozen=True, slots=True)
class _Words(_Kind):
    """One of a few words."""

    allowed: tuple[str, ...]

    def take(self, value: Any, lengths: Lengths) -> Any:
        return value if isinstance(value, str) and value in self.allowed else _REFUSED

    def words(self, lengths: Lengths) -> str:
        return f"one of {', '.join(self.allowed)}"


class _Numbers(_Kind):
    """Real numbers of Python, and of NumPy, which become Python's; a truth value is none."""

    def take(self, value: Any, lengths: Lengths) -> Any:
        if not isinstance(value, _NUMBER_TYPES) or isinstance(value, bool):
            return _REFUSED
        return value.item() if isinstance(value, np.generic) else value

    def words(self, lengths: Lengths) -> str:
        return "a number"


@dataclass(frozen=True, slots=True)
class _Whole(_Kind):
    """Whole numbers, of a length those of int32; and symbolic dimensions, where those may be."""

    least: int | None = None
    may_be_symbolic: bool = False

    def take(self, value: Any, lengths: Lengths) -> Any:
        if type(value) is not int:
            if isinstance(value, np.integer):
                value = int(value)
            elif isinstance(value, bool) or not isinstance(value, int):
                is_length = self.may_be_symbolic and is_symbolic_dim(value)
                return value if is_length else _REFUSED
        return value if self.least is None or self.least <= value < 2**31 else _REFUSED

    def words(self, lengths: Lengths) -> str:
        return "a whole number" + ("" if self.least is None else f", {self.least} to 2**31 - 1")


@dataclass(frozen=True, slots=True)
class _Tuples(_Kind):
    """Tuples of values of a kind."""

    kind: _Kind
    may_be_empty: bool

    def take(self, value: Any, lengths: Lengths) -> Any:
        if not isinstance(value, tuple) or not (value or self.may_be_empty):
            return _REFUSED
        taken = tuple(self.kind.take(item, lengths) for item in value)
        if any(item is _REFUSED for item in taken):
            return _REFUSED
        return value if all(a is b for a, b in zip(taken, value, strict=True)) else taken

    def words(self, lengths: Lengths) -> str:
        return f"a tuple, each of whose members is {self.kind.words(lengths)}"


@dataclass(frozen=True, slots=True)
class _Lists(_Kind):
    """Lists and tuples of values of a kind."""

    kind: _Kind

    def take(self, value: Any, lengths: Lengths) -> Any:
        if not isinstance(value, list | tuple):
            return _REFUSED
        taken = [self.kind.take(item, lengths) for item in value]
        return _REFUSED if any(item is _REFUSED for item in taken) else taken

    def words(self, lengths: Lengths) -> str:
        return f"a list, each of whose members is {self.kind.words(lengths)}"


#: A length: a whole number of at least 1, or a symbolic dimension while a block is traced for every
#: plan at once.
Count = Annotated[Any, _Whole(1, may_be_symbolic=True)]
#: A length that is a number of Python.
Positive = Annotated[int, _Whole(1)]
#: Lengths of parts, of which some may be empty.
Counts = Annotated[Any, _Tuples(_Whole(0, may_be_symbolic=True), False)]


# --- annotations ----------------------------------------------------------------------------------


def _kinds(annotation: Any) -> tuple[_Kind, ...]:
    """Return the kinds of value that an annotation allows, none for any."""
    if annotation is Any:
        return ()
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    if any(_is_union(member) for member in members):
        raise TypeError(f"nested union {annotation}")
    kinds = [_kind(member) for member in members if not (member is int and float in members)]
    # A number of NumPy is a number first, and an array without dimensions where none is taken.
    return tuple(sorted(dict.fromkeys(kinds), key=lambda kind: kind is not _NUMBERS))


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _kind(annotation: Any) -> _Kind:
    """Return the kind of value that one member of a union allows."""
    if get_origin(annotation) is Annotated:
        kind: _Kind = annotation.__metadata__[0]
        return kind
    if get_origin(annotation) is Literal:
        return _Words(get_args(annotation))
    if get_origin(annotation) is Sequence:
        (kind,) = _kinds(get_args(annotation)[0])
        return _Lists(kind)
    if get_origin(annotation) is tuple:
        member, dots = get_args(annotation)
        assert dots is Ellipsis, f"tuple of fixed length {annotation}"
        return _Tuples(_kind(member), True)
    if annotation is int:
        return _Whole()
    if annotation in (float, np.number):
        return _NUMBERS
    if annotation is jax.Array:
        annotation = Shaped[jax.Array, "..."]
    annotation = (
        get_origin(annotation) or annotation
    )  # of a generic class its members are not asked
    if isinstance(annotation, type):
        return (
            _arrays(annotation) if issubclass(annotation, AbstractArray) else _Instances(annotation)
        )
    if annotation is None:
        return _Instances(NoneType)
    raise TypeError(f"annotation {annotation} is of no known kind")


_NUMBERS = _Numbers()
#: Names of whole families of types; the members of others are listed.
_FAMILIES: Mapping[str, str] = {
    "Float": "a floating point array",
    "Integer": "an integer array",
    "Num": "an array of numbers",
    "Shaped": "an array",
    "UInt": "an unsigned integer array",
}


def _arrays(annotation: Any) -> _Arrays:
    """Read an array annotation of jaxtyping."""
    family = annotation.dtype
    names = (*Num.dtypes, *Bool.dtypes) if family is Shaped else annotation.dtypes
    dims = tuple(annotation.dim_str.split())
    many = [i for i, name in enumerate(dims) if name == "..." or name.startswith("*")]
    words = _FAMILIES.get(family.__name__, with_article(f"{names[0]} array"))
    if family is Key:
        return _Arrays("a random key", frozenset(), dims, None, False)
    return _Arrays(
        words,
        frozenset(jnp.dtype(name) for name in names if name != "bool_"),
        dims,
        many[0] if many else None,
        dims == ("...",),
    )


# --- what annotations do not say ------------------------------------------------------------------


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun; "u" sounds like "you" in names of types."""
    return f"{'an' if noun[0] in 'aeioAEIOU' else 'a'} {noun}"


def described(value: Any) -> str:
    """Say what was given, in a few words of one line: `'fp16'`, `float32[2,3]`, a class's name."""
    if isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"
    if isinstance(value, int) and value.bit_length() > _MOST_SHOWN * 3:
        return f"about {'-' if value < 0 else ''}2**{value.bit_length() - 1}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        text = repr(value)
        return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return with_article(type(value).__name__)


def check_not_empty(caller: str, name: str, array: Any) -> None:
    """Refuse an array without values.

    Raises:
        LpuError: with its shape.
    """
    if any(isinstance(length, int) and length == 0 for length in array.shape):
        raise LpuError(f"{caller}: {name}={described(array)} was given; it must hold values.")


def check_spread(caller: str, shapes: list[tuple[Any, ...]]) -> None:
    """Refuse arrays that are not of one rank, with lengths that are equal or 1.

    Raises:
        LpuError: with the shapes.
    """
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return
    lengths = [{n for n in sizes if isinstance(n, int) and n != 1} for sizes in zip(*shapes)]  # noqa: B905
    if len({len(shape) for shape in shapes}) > 1 or any(len(found) > 1 for found in lengths):
        raise LpuError(
            f"{caller}: shapes {', '.join(map(str, shapes))} were given; they must have the same "
            "rank, with lengths that are equal or 1."
        )


def check_within(
    caller: str, name: str, values: Any, least: int | None, most: Any, what: str
) -> None:
    """Refuse addresses out of a range, where they are known: not while a program is traced.

    Args:
        caller: the function.
        name: of its argument.
        values: an integer array.
        least: the smallest allowed, None for any.
        most: the largest allowed; nothing is checked if it is symbolic.
        what: what the range is of.

    Raises:
        LpuError: with the first address that is out of it.
    """
    if not is_concrete(values) or not isinstance(most, int):
        return
    flat = np.asarray(values).reshape(-1)
    is_outside = flat > most if least is None else (flat < least) | (flat > most)
    if is_outside.any():
        allowed = f"at most {most}" if least is None else f"{least} to {most}"
        raise LpuError(
            f"{caller}: {name} {flat[is_outside][0]} was given; it must be {allowed} for {what}."
        )
