"""A program as a GPU would run it: operations fused into kernels by a stated rule.

The rule, in program order (assumed; it is what serving engines and fusing compilers reach):
- A product is a kernel. Products of the same rows with weights of the same storage are one.
- Attention is one kernel: products whose stationary operand is a cache that this program appends
  to, and what lies between them.
- A collective is a kernel.
- Element-wise chains and layout that follow a product, attention or a collective are its epilogue.
- All else between these (reductions, selections, accesses by address and what follows them) is one
  kernel.
A kernel reads each value once and writes only what is used outside of it. Not modelled: tiles too
large for the memory inside a GPU, and the split of one product over several kernels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import prod

from ..datapath.primitive import free
from ..datapath.work import Call, Hardware, Length, Quantity, Unit, Work
from ..datapath.work import product as product_of
from ..errors import CostError
from ..numerics.accumulate import PRODUCT_KINDS
from .program import IN_PLACE, Operation, Program, Shape, chain_cost
from .routing import Choices, Load, Routing, choices_of, lists_of

#: Products of rows and installed weights, whose parameters say how these are stored.
_OF_WEIGHTS = frozenset({"mxm_matmul", "tensor_core_matmul", "tensor_core_scaled_matmul"})
_PRODUCTS = _OF_WEIGHTS | {"dot_general"}
_COLLECTIVES = frozenset({"all_gather", "reduce_scatter", "all_to_all"})
_LAYOUT = frozenset({"transpose", "concatenate", "slice", "pad", "rev", "split"})
#: Writes of new entries into an array that stays where it is.
_IN_PLACE = IN_PLACE | {"dynamic_update_slice"}
#: Reads of as much of a table as the result holds.
_LOOKUPS = frozenset(
    {
        *("mem_lookup", "mem_address", "mem_take_rows", "mem_gather_rows", "mem_gather"),
        *("gather", "dynamic_slice"),
    }
)
_STATIONARY = 1
#: Widest storage that a product reads: the matrix units take no 32-bit operands.
_WIDEST_OPERAND_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value that a kernel reads or writes."""

    shape: Shape
    routing: Routing | None = None

    def size_bytes(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        """Stored bytes; of routed rows, of the chosen ones."""
        size = self.shape.bind(symbols).size_bytes
        return size if self.routing is None else size * self.routing.share(symbols, load)


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product of rows and a stationary operand, or one for each of several matrices."""

    operation: Operation
    routing: Routing | None = None

    @property
    def operand(self) -> str:
        """Operand kind at whose rate it multiplies; types of no kind count as 16-bit.

        Codes with block scales count as fp8, fp4 too: rates of fp4 are not part of a `GpuSpec`.
        """
        if self.operation.name == "tensor_core_scaled_matmul":
            return "fp8"
        x, w = self.operation.operands[:2]
        return PRODUCT_KINDS.get((x.dtype, w.dtype), "fp16")

    def flops(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        """Multiplications and additions; of routed rows, of the chosen ones."""
        matrices, m, k, n, _ = self._lengths(symbols)
        total = 2.0 * matrices * m * (k * n)
        return total if self.routing is None else total * self.routing.share(symbols, load)

    def stationary_bytes(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        """Stored bytes of the stationary operand; of a store, of the matrices in use."""
        matrices, _, k, n, bits = self._lengths(symbols)
        if isinstance(self.routing, Choices):
            matrices = self.routing.matrices(symbols, load)
        return matrices * (k * n) * bits / 8

    def _lengths(
        self, symbols: Mapping[str, Length]
    ) -> tuple[Quantity, Quantity, Quantity, Quantity, float]:
        """Matrices, rows, contraction, columns, and stored bits of the stationary operand."""
        operation = self.operation
        x, w = (shape.bind(symbols) for shape in operation.operands[:2])
        params = operation.params
        copies = product_of(Shape(operation.copies, w.dtype).bind(symbols).shape)
        if operation.name == "dot_general":
            (contract, _), (batch, _) = params["dimension_numbers"]
            matrices = prod(x.shape[i] for i in batch)
            k = prod(x.shape[i] for i in contract)
            m = prod(n for i, n in enumerate(x.shape) if i not in (*contract, *batch))
            n = w.size / max(1, matrices * k)
            return copies * matrices, m, k, n, float(min(w.bits, _WIDEST_OPERAND_BITS))
        matrices = operation.results[0].bind(symbols).shape[0] if params["grouped"] else 1
        return copies * matrices, x.shape[-2], w.shape[-2], w.shape[-1], params["weight_bits"]


@dataclass(frozen=True, kw_only=True)
class FusedOperation(Operation):
    """The operations of a kernel as one, which makes only what is used outside of it."""

    made: tuple[Value, ...]

    def result_bytes(self, symbols: Mapping[str, Length]) -> tuple[Quantity, ...]:
        """Bytes of each value it makes; of routed rows, of those chosen at worst."""
        return tuple(value.size_bytes(symbols, "worst") for value in self.made)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Operations that run as one, as far as a roofline sees them."""

    unit: Unit  #: MXM for products, C2C for collectives, VXM for all else, FREE for no kernel
    operation: Operation  #: all of it as one operation
    products: tuple[Product, ...] = ()
    moves: tuple[Value, ...] = ()  #: read or written, but for stationary operands
    collective: Operation | None = None
    sent: Routing | None = None  #: rows of lists that a collective exchanges

    @property
    def is_alone(self) -> bool:
        """Whether it is a collective without an epilogue."""
        return self.collective is not None and self.operation.name == self.collective.name

    @property
    def is_routed(self) -> bool:
        """Whether it works on routed rows."""
        values = (value.routing for value in self.moves)
        routings = [*values, *(product.routing for product in self.products), self.sent]
        return any(routing is not None for routing in routings)


@dataclass
class _Draft:
    unit: Unit
    operations: list[Operation]
    is_attention: bool = False


def kernels(program: Program) -> tuple[Kernel, ...]:
    """Fuse the operations of a program into kernels.

    Args:
        program: from `program.read`; lengths may be symbols.

    Returns:
        Kernels in program order. Operations that cost nothing anywhere (addressing and layout
        that is decided in advance) come as kernels of unit FREE, those on values that are in memory
        before the program runs first of all.
    """
    return _Fusion(program).kernels()


@dataclass
class _Fusion:
    """What is known of the values of a program while it is fused."""

    program: Program
    values: dict[int, Value] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    caches: set[int] = field(default_factory=set)
    makers: dict[int, Operation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find shape and routing of every value."""
        inputs = zip(self.program.inputs, self.program.input_shapes, strict=True)
        self.values.update({number: Value(shape=shape) for number, shape in inputs})
        self.known.update(self.program.inputs)
        for operation in self.program.operations:
            routing = self._routing(operation)
            shapes = operation.results[-len(operation.makes) :] if operation.makes else ()
            for number, shape in zip(operation.makes, shapes, strict=True):
                whole = Shape((*operation.copies, *shape.dimensions), shape.dtype)
                self.values[number] = Value(shape=whole, routing=routing)
            self.makers.update(dict.fromkeys(operation.makes, operation))
            if operation.result_known:
                self.known.update(operation.makes)
            is_view = operation.rule is free and operation.reads[0] in self.caches
            if is_view or operation.name in _IN_PLACE:
                self.caches.update(operation.makes)

    def _routing(self, operation: Operation) -> Routing | None:
        """Routing of a result: begun where rows are chosen, kept by what follows."""
        if operation.params.get("addressed") and operation.params["shared_x"]:
            return choices_of(operation, self.makers)
        if operation.name == "c2c_all_to_all" or operation.name in _LOOKUPS:
            return lists_of(operation, self.program)
        if operation.name in _PRODUCTS:
            rows = operation.reads[0]
            return None if rows is None else self.values[rows].routing
        if not _is_epilogue(operation):
            return None
        given = [self.values[v].routing for v in operation.reads if v is not None]
        return next((routing for routing in given if routing is not None), None)

    def kernels(self) -> tuple[Kernel, ...]:
        # What only names values in memory comes first, so that no kernel reads a name before it.
        names = [op for op in self.program.operations if op.rule is free and op.result_known]
        drafts: list[_Draft | Operation] = [*names]
        for operation in self.program.operations:
            if operation.rule is not free:
                self._add(operation, drafts)
            elif not operation.result_known:
                drafts.append(operation)
        outside = self._read_outside(drafts)
        return tuple(
            self._kernel(draft, outside[place])
            if isinstance(draft, _Draft)
            else Kernel(unit=Unit.FREE, operation=draft)
            for place, draft in enumerate(drafts)
        )

    def _add(self, operation: Operation, drafts: list[_Draft | Operation]) -> None:
        """Let an operation join a kernel, or begin one."""
        recent = list(islice((d for d in reversed(drafts) if isinstance(d, _Draft)), 2))
        last = recent[0] if recent else None
        if operation.name in _PRODUCTS:
            is_attention = operation.reads[_STATIONARY] in self.caches
            before = next((draft for draft in recent if draft.unit is not Unit.VXM), None)
            if is_attention and before is not None and before.is_attention:
                if last is not None and last is not before:
                    before.operations += last.operations
                    drafts.remove(last)
                before.operations.append(operation)
                return
            if last is not None and self._shares_rows(operation, last):
                last.operations.append(operation)
                return
            drafts.append(_Draft(Unit.MXM, [operation], is_attention))
        elif _is_collective(operation):
            drafts.append(_Draft(Unit.C2C, [operation]))
        elif last is not None and (last.unit is Unit.VXM or _is_epilogue(operation)):
            last.operations.append(operation)
        else:
            drafts.append(_Draft(Unit.VXM, [operation]))

    def _shares_rows(self, operation: Operation, draft: _Draft) -> bool:
        """Whether a product can run side by side with those of a kernel, as columns of one."""
        if draft.unit is not Unit.MXM or draft.is_attention:
            return False
        if operation.reads[_STATIONARY] not in self.known:
            return False
        return all(
            other.reads[0] == operation.reads[0]
            and other.name == operation.name in _OF_WEIGHTS
            and not (other.params["grouped"] or operation.params["grouped"])
            and other.params["weight_bits"] == operation.params["weight_bits"]
            for other in draft.operations
            if other.name in _PRODUCTS
        )

    def _read_outside(self, drafts: list[_Draft | Operation]) -> list[set[int | None]]:
        """Values that something outside of each kernel reads."""
        readers: dict[int | None, set[int]] = {value: {-1} for value in self.program.outputs}
        for place, draft in enumerate(drafts):
            for operation in _operations(draft):
                for value in operation.reads:
                    readers.setdefault(value, set()).add(place)
        return [
            {value for value, places in readers.items() if places - {place}}
            for place in range(len(drafts))
        ]

    def _kernel(self, draft: _Draft, outside: set[int | None]) -> Kernel:
        inside = {value for operation in draft.operations for value in operation.makes}
        reads: dict[int, Value] = {}
        plain: dict[int, Value] = {}  # read whole, and once, however often used
        moves: list[Value] = []
        for operation in draft.operations:
            skipped = _read_in_part(operation)
            for index, number in enumerate(operation.reads):
                if number is not None and number not in inside:
                    reads[number] = self.values[number]
                    if index != skipped:
                        plain[number] = self.values[number]
            if operation.name in _LOOKUPS:
                moves += [self.values[number] for number in operation.makes]
            if operation.name in _IN_PLACE:
                moves.append(Value(shape=_whole(operation, operation.operands[1])))
        makes = {
            number: self.values[number]
            for operation in draft.operations
            if operation.name not in _IN_PLACE
            for number in operation.makes
            if number in outside
        }
        products = [op for op in draft.operations if op.name in _PRODUCTS]
        first = draft.operations[0]
        return Kernel(
            unit=draft.unit,
            operation=FusedOperation(
                name=_name(draft.operations),
                reads=tuple(reads),
                makes=tuple(makes),
                operands=tuple(value.shape for value in reads.values()),
                results=tuple(value.shape for value in makes.values()),
                params={},
                rule=_no_rule,
                made=tuple(makes.values()),
            ),
            products=tuple(Product(operation=op, routing=self._routing(op)) for op in products),
            moves=(*plain.values(), *moves, *makes.values()),
            collective=first if draft.unit is Unit.C2C else None,
            sent=self._routing(first) if draft.unit is Unit.C2C else None,
        )


def _operations(draft: _Draft | Operation) -> Iterable[Operation]:
    return draft.operations if isinstance(draft, _Draft) else (draft,)


def _is_collective(operation: Operation) -> bool:
    return operation.name.startswith("c2c_") or operation.name in _COLLECTIVES


def _is_epilogue(operation: Operation) -> bool:
    """Whether it can be done on a kernel's results before they are written."""
    is_layout = operation.name.startswith("sxm_") or operation.name in _LAYOUT
    return operation.rule is chain_cost or is_layout


def _read_in_part(operation: Operation) -> int | None:
    """Operand whose bytes are not those of its shape."""
    if operation.name in _PRODUCTS:
        return _STATIONARY
    return 0 if operation.name in _LOOKUPS | _IN_PLACE else None


def _whole(operation: Operation, shape: Shape) -> Shape:
    return Shape((*operation.copies, *shape.dimensions), shape.dtype)


def _name(operations: list[Operation]) -> str:
    first, *others = operations
    short = (op.name.removeprefix("vxm_").removeprefix("sxm_") for op in others)
    return "+".join(dict.fromkeys((first.name, *short)))


def _no_rule(machine: Hardware, call: Call) -> Work:
    raise CostError("a GPU kernel has no cost on an LPU.")
