"""From a jaxpr to the chip's program: a list of operations whose dimensions may be symbols.

One trace of a block with symbolic dimensions serves every plan: `bind` puts numbers, or arrays with
one number per plan, in place of the symbols. Element-wise VXM operations that feed each other are
joined into chains, as the chip joins ALUs. Not modelled: dead code (all equations are scheduled)
and reordering: operations keep the order of the program.
"""

import ast
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import CodeType, MappingProxyType
from typing import Any

import numpy as np
from jax.export import is_symbolic_dim
from jax.extend.core import ClosedJaxpr, Literal

from ..datapath.alu import AluChain, Path, through
from ..datapath.primitive import DEFINITIONS, CostRule, free
from ..datapath.work import Call, Hardware, Length, Operand, Quantity, Unit, Work, largest, smallest
from ..errors import CostError
from . import ordinary

#: Equations whose body is part of the program, with the name of the parameter that holds it.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "shard_map": "jaxpr",
}
#: Layout that the compiler decides: it names values again and moves nothing.
FREE_LAYOUT = frozenset({"reshape", "squeeze", "broadcast_in_dim", "slice", "copy"})
#: Datapath operations that write into their first operand, which is also their result.
IN_PLACE = frozenset({"mem_append", "mem_append_run", "mem_append_ring"})
#: Those that write one of their results, of this number, over their first operand.
WRITES_OVER = MappingProxyType({"vxm_linear_recurrence": 1, "vxm_short_convolution": 1})


@dataclass(frozen=True)
class Expression:
    """A dimension that depends on symbols, compiled for numbers and for arrays."""

    text: str
    code: CodeType = field(compare=False, repr=False)

    def __call__(self, symbols: Mapping[str, Length]) -> Length:
        """Evaluate with a value, or one value per plan, for each symbol."""
        value: Length = eval(self.code, dict(_FUNCTIONS), dict(symbols))
        return value


#: What the printed form of a symbolic dimension calls; numbers stay Python integers.
_FUNCTIONS: Mapping[str, Any] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": largest,
    "min": smallest,
    "__builtins__": {},
}
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant,
    ast.Add, ast.Sub, ast.Mult, ast.Pow, ast.USub,
)  # fmt: skip


def expression(dimension: Any) -> Expression:
    """Compile a symbolic dimension from its printed form, as `symbolic_shape` reads it."""
    text = str(dimension)
    tree = ast.parse(text.replace("^", "**"), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC):
            raise CostError(f"dimension {text!r} is not integer arithmetic.")
    return Expression(text, compile(tree, text, "eval"))


def _symbols_to_expressions(value: Any) -> Any:
    """Replace symbolic dimensions inside shapes and parameters."""
    if isinstance(value, tuple):
        return tuple(_symbols_to_expressions(item) for item in value)
    return expression(value) if is_symbolic_dim(value) else value


def _evaluate(value: Any, symbols: Mapping[str, Length]) -> Any:
    if isinstance(value, tuple):
        return tuple(_evaluate(item, symbols) for item in value)
    return value(symbols) if isinstance(value, Expression) else value


@dataclass(frozen=True)
class Shape:
    """Shape and type of a value; dimensions are ints or expressions."""

    dimensions: tuple[Any, ...]
    dtype: str

    def bind(self, symbols: Mapping[str, Length]) -> Operand:
        """Put numbers in place of symbols."""
        return Operand(shape=_evaluate(self.dimensions, symbols), dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation: what it reads and makes, by number of the value, and its cost rule."""

    name: str
    reads: tuple[int | None, ...]  #: None is a constant
    makes: tuple[int, ...]
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    params: Mapping[str, Any]
    rule: CostRule
    copies: tuple[Any, ...] = ()  #: lengths of batch dimensions around the operation
    result_known: bool = False  #: the result is in memory before the program runs

    def work(self, machine: Hardware, symbols: Mapping[str, Length]) -> Work:
        """Cost of the operation with numbers, or arrays with one per plan, in place of symbols."""
        call = Call(
            operands=tuple(shape.bind(symbols) for shape in self.operands),
            results=tuple(shape.bind(symbols) for shape in self.results),
            params=self.numbers(symbols),
        )
        work = self.rule(machine, call)
        if not self.copies:
            return work
        times = self._times(symbols)
        return Work(
            **{
                **vars(work),
                "busy_cycles": work.busy_cycles * times,
                "moved_bytes": work.moved_bytes * times,
                "limits": {name: cycles * times for name, cycles in work.limits.items()},
            }
        )

    def numbers(self, symbols: Mapping[str, Length]) -> dict[str, Any]:
        """Parameters with numbers in place of symbols."""
        return {name: _evaluate(value, symbols) for name, value in self.params.items()}

    def result_bytes(self, symbols: Mapping[str, Length]) -> tuple[Quantity, ...]:
        """Bytes of each value it makes, without padding."""
        # The first result of a chain is the shape it runs over.
        shapes = self.results[-len(self.makes) :] if self.makes else ()
        times = self._times(symbols)
        return tuple(shape.bind(symbols).size_bytes * times for shape in shapes)

    def _times(self, symbols: Mapping[str, Length]) -> Quantity:
        times: Quantity = 1.0
        for length in self.copies:
            times = times * _evaluate(length, symbols)
        return times


@dataclass(frozen=True, kw_only=True)
class Program:
    """The operations of one chip in program order, and the values that come in and go out."""

    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int | None, ...]
    ordinary: tuple[str, ...] = ()  #: JAX primitives priced by the assumed rules of `ordinary`
    input_shapes: tuple[Shape, ...] = ()  #: of `inputs`

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the operations, in order."""
        return tuple(operation.name for operation in self.operations)


def read(jaxpr: ClosedJaxpr, *, strict: bool = False) -> Program:
    """Read a jaxpr as the program of one chip.

    Args:
        jaxpr: traced with `lpu_jax.mesh.trace` or `jax.make_jaxpr`; dimensions may be symbolic.
        strict: allow datapath operations and free layout only, as the project's own layers must.

    Returns:
        The program, its element-wise operations joined into chains.

    Raises:
        CostError: an equation has no cost rule; the sentence names its primitive.
    """
    reader = _Reader(strict)
    inputs = [reader.new() for _ in jaxpr.jaxpr.invars]
    reader.known.update(inputs)
    outputs = reader.walk(jaxpr.jaxpr, inputs)
    operations = _join_chains(reader.operations, [v for v in outputs if v is not None])
    return Program(
        operations=tuple(operations),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        ordinary=tuple(sorted(reader.ordinary)),
        input_shapes=tuple(_shape(list(v.aval.shape), v) for v in jaxpr.jaxpr.invars),
    )


class _Reader:
    """Walks equations, numbering values; values that only name another again share its number."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.operations: list[_Draft] = []
        self.known: set[int] = set()
        self.ordinary: set[str] = set()
        self._count = 0

    def new(self) -> int:
        self._count += 1
        return self._count

    def walk(self, jaxpr: Any, arguments: Iterable[int | None]) -> list[int | None]:
        numbers: dict[Any, int | None] = dict(zip(jaxpr.invars, arguments, strict=True))
        numbers.update(dict.fromkeys(jaxpr.constvars))

        def number(atom: Any) -> int | None:
            return None if isinstance(atom, Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            made = self._equation(equation, [number(atom) for atom in equation.invars])
            numbers.update(zip(equation.outvars, made, strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, reads: list[int | None]) -> list[int | None]:
        name = equation.primitive.name
        if name in INLINED:
            body = equation.params[INLINED[name]]
            return self.walk(getattr(body, "jaxpr", body), reads)
        if name == "scan" and not self.strict:
            return self._scan(equation, reads)
        if name in FREE_LAYOUT and (name != "slice" or _is_leading_slice(equation)):
            return [reads[0]]
        definition = DEFINITIONS.get(equation.primitive)
        params = dict(equation.params)
        levels = params.pop("levels", ())
        if definition is None:
            if self.strict:
                raise CostError(
                    f"{name}: not a datapath operation or free layout; a layer may hold nothing "
                    "else."
                )
            if all(value is None for value in reads):
                # Arithmetic on constants is done by the compiler.
                return [None] * len(equation.outvars)
            rule, chain = ordinary.rule_of(name)
            self.ordinary.add(name)
        else:
            rule = definition.cost
            chain = definition.chain(params) if definition.chain is not None else None
        return self._emit(equation, reads, params, levels, rule, chain)

    def _emit(
        self,
        equation: Any,
        reads: list[int | None],
        params: dict[str, Any],
        levels: tuple[tuple[bool, ...], ...],
        rule: CostRule | None,
        chain: AluChain | None,
    ) -> list[int | None]:
        makes = [self.new() for _ in equation.outvars]
        copies: list[Any] = []
        operands = [list(atom.aval.shape) for atom in equation.invars]
        for flags in levels:
            sizes = [shape.pop(0) for shape, f in zip(operands, flags, strict=True) if f]
            copies.append(sizes[0])
        results = [list(atom.aval.shape)[len(levels) :] for atom in equation.outvars]
        in_place = equation.primitive.name in IN_PLACE or rule is free
        known = in_place and (reads[0] is None or reads[0] in self.known)
        if known:
            self.known.update(makes)
        draft = _Draft(
            name=equation.primitive.name,
            reads=reads,
            makes=makes,
            operands=[_shape(s, a) for s, a in zip(operands, equation.invars, strict=True)],
            results=[_shape(s, a) for s, a in zip(results, equation.outvars, strict=True)],
            params={k: _symbols_to_expressions(v) for k, v in params.items()},
            rule=rule,
            alu=chain,
            copies=[_symbols_to_expressions(length) for length in copies],
            known=known,
        )
        self.operations.append(draft)
        return list(makes)

    def _scan(self, equation: Any, reads: list[int | None]) -> list[int | None]:
        """Unroll a loop of known length; its stacked operands and results are named as a whole."""
        body = equation.params["jaxpr"].jaxpr
        # Stacked operands have one dimension more than in the body; JAX versions differ in what
        # else they say.
        n_stacked = _n_longer(equation.invars, body.invars)
        n_carry = len(equation.outvars) - _n_longer(equation.outvars, body.outvars)
        n_consts = len(reads) - n_stacked - n_carry
        consts, carry, stacked = (
            reads[:n_consts],
            reads[n_consts : n_consts + n_carry],
            reads[n_consts + n_carry :],
        )
        made: list[int | None] = []
        for _ in range(equation.params["length"]):
            out = self.walk(body, [*consts, *carry, *stacked])
            carry, made = out[:n_carry], out[n_carry:]
        return [*carry, *made]


def _shape(dimensions: list[Any], atom: Any) -> Shape:
    return Shape(_symbols_to_expressions(tuple(dimensions)), atom.aval.dtype.name)


def _n_longer(outside: Any, inside: Any) -> int:
    """Count values that have more dimensions outside of a loop than in its body."""
    return sum(
        len(whole.aval.shape) > len(part.aval.shape)
        for whole, part in zip(outside, inside, strict=True)
    )


def _is_leading_slice(equation: Any) -> bool:
    """A slice that keeps every dimension but the first whole is a range of addresses."""
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    shape = equation.invars[0].aval.shape
    strides = equation.params["strides"] or (1,) * len(shape)
    return all(
        start == 0 and limit == size and stride == 1
        for start, limit, size, stride in list(zip(starts, limits, shape, strides, strict=True))[1:]
    )


# --- chains of element-wise operations ------------------------------------------------------------


@dataclass
class _Draft:
    """An operation while the program is read; `chain` collects the operations joined to it."""

    name: str
    reads: list[int | None]
    makes: list[int]
    operands: list[Shape]
    results: list[Shape]
    params: dict[str, Any]
    rule: CostRule | None
    alu: AluChain | None
    copies: list[Any]
    known: bool
    chain: list["_Draft"] = field(default_factory=list)

    @property
    def size(self) -> str:
        """Number of values of the result, in a form that can be compared."""
        return repr((self.results[0].dimensions, self.copies))


def _join_chains(drafts: list[_Draft], outputs: list[int]) -> list[Operation]:
    """Join each element-wise operation to the latest chain it continues.

    Nothing it reads may come after that chain.
    """
    items: list[_Draft] = []
    made_at: dict[int, int] = {}
    for draft in drafts:
        place = _chain_to_continue(draft, items, made_at)
        if place is None:
            place = len(items)
            items.append(draft)
            draft.chain = [draft]
        else:
            items[place].chain.append(draft)
        made_at.update(dict.fromkeys(draft.makes, place))
    readers: dict[int, set[int]] = {}
    for place, item in enumerate(items):
        for part in item.chain:
            for value in part.reads:
                if value is not None:
                    readers.setdefault(value, set()).add(place)
    leaving = set(outputs)
    return [
        _chained(item, place, readers, leaving) if item.alu is not None else _single(item)
        for place, item in enumerate(items)
    ]


def _chain_to_continue(draft: _Draft, items: list[_Draft], made_at: dict[int, int]) -> int | None:
    if draft.alu is None:
        return None
    places = [made_at[value] for value in draft.reads if value in made_at]
    if not places:
        return None
    latest = max(places)
    head = items[latest]
    return latest if head.alu is not None and head.size == draft.size else None


def _single(draft: _Draft) -> Operation:
    if draft.rule is None:
        raise AssertionError(f"{draft.name} has neither a cost rule nor an ALU chain")
    return Operation(
        name=draft.name,
        reads=tuple(draft.reads),
        makes=tuple(draft.makes),
        operands=tuple(draft.operands),
        results=tuple(draft.results),
        params=draft.params,
        rule=draft.rule,
        copies=tuple(draft.copies),
        result_known=draft.known,
    )


def _chained(
    head: _Draft, place: int, readers: dict[int, set[int]], leaving: set[int]
) -> Operation:
    """Describe a chain as one operation: values from outside in, values used outside out."""
    inside = {value for part in head.chain for value in part.makes}
    reads: dict[int, Shape] = {}
    makes: dict[int, Shape] = {}
    ways: dict[int | None, tuple[Path, ...]] = {}
    alu = [part.alu for part in head.chain if part.alu is not None]
    for part, row in zip(head.chain, alu, strict=True):
        for value, shape in zip(part.reads, part.operands, strict=True):
            if value is not None and value not in inside:
                reads.setdefault(value, shape)
        before = {way for value in part.reads for way in ways.get(value, ())} or {(0, ())}
        for value, shape in zip(part.makes, part.results, strict=True):
            ways[value] = through(before, row)
            if value in leaving or readers.get(value, set()) - {place}:
                makes[value] = shape
    names = [part.name.removeprefix("vxm_") for part in head.chain]
    return Operation(
        name="vxm_" + "+".join(names),
        reads=tuple(reads),
        makes=tuple(makes),
        operands=tuple(reads.values()),
        results=(head.results[0], *makes.values()),
        params={
            "operations": sum(row.operations for row in alu),
            "large": sum(row.large for row in alu),
            "special": tuple(name for row in alu for name in row.special),
            "paths": tuple(sorted({way for found in ways.values() for way in found})),
        },
        rule=chain_cost,
        copies=tuple(head.copies),
    )


def chain_cost(machine: Hardware, call: Call) -> Work:
    """Cost a chain of `d` ALU operations over `v` vectors.

    It takes `max(v d / 16, in / 8, out / 8) + 5 + 3 depth` cycles. A special function is as many
    operations, on the large ALUs, as the chip has passes for it. The first result of the call is
    the shape the chain runs over; the others are the values that leave it.
    """
    chip, params = machine.chip, call.params
    special = sum(map(chip.special_passes, params["special"]))
    depth = max(plain + sum(map(chip.special_passes, names)) for plain, names in params["paths"])
    lanes = float(chip.lanes)
    steps = np.ceil(call.results[0].size / lanes)
    read = sum((np.ceil(x.size / lanes) for x in call.operands), 0.0)
    made = sum((np.ceil(x.size / lanes) for x in call.results[1:]), 0.0)
    limits = {
        "ALUs": steps * (params["operations"] + special) / chip.vxm_alus_per_lane,
        "large ALUs": steps * (params["large"] + special) / chip.vxm_large_alus_per_lane,
        "streams in": read / chip.vxm_stream_groups,
        "streams out": made / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=float(chip.vxm_entry_cycles + chip.alu_cycles * depth),
    )
