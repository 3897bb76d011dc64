"""Costs of ordinary JAX primitives, for functions that are not written in datapath operations.

Every row is assumed: the vendor's compiler is not public. A report lists the rows it used. A
primitive without a row is an error that names it. Not modelled: convolutions, sorting, scatters and
data-dependent loops.
"""

from math import prod

from ..datapath import mxm
from ..datapath.alu import ALU, AluChain
from ..datapath.primitive import CostRule, free
from ..datapath.sxm import move_cost
from ..datapath.vxm import reduction_cost
from ..datapath.work import Call, Hardware, Unit, Work, ceil_div, vectors
from ..errors import CostError
from ..numerics.accumulate import PRODUCT_KINDS

#: Element-wise primitives as ALU operations. Logarithms, powers, sines and cosines are priced as
#: an exponential or a logarithm, erf as the GELU that contains it.
ELEMENT_WISE = {
    **dict.fromkeys(
        [
            "add",
            "sub",
            "mul",
            "max",
            "min",
            "neg",
            "abs",
            "sign",
            "floor",
            "ceil",
            "round",
            "select_n",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "and",
            "or",
            "not",
            "xor",
            "is_finite",
            "convert_element_type",
            "clamp",
            "integer_pow",
            "square",
            "stop_gradient",
            "add_any",
        ],
        ALU["add"],
    ),
    **dict.fromkeys(["exp", "exp2", "expm1", "pow", "sin", "cos"], ALU["exp"]),
    **dict.fromkeys(["log", "log1p"], ALU["log"]),
    "erf": ALU["gelu"],
    "logistic": ALU["sigmoid"],
    **{name: ALU[name] for name in ("tanh", "div", "rsqrt", "sqrt")},
}


def _dot_general(machine: Hardware, call: Call) -> Work:
    """A contraction on the MXM: batch dimensions are matrices, the second operand is stationary.

    Operands that the chip's matrix unit does not take, such as float32, are priced as float16.
    """
    (contract_x, _), (batch_x, _) = call.params["dimension_numbers"]
    x, w = call.operands
    kind = PRODUCT_KINDS.get((x.dtype, w.dtype), "fp16")
    if kind == "fp8" and machine.chip.mxm_fp8 is None:
        kind = "fp16"
    groups = prod(x.shape[d] for d in batch_x)
    k = prod(x.shape[d] for d in contract_x)
    m = prod(n for d, n in enumerate(x.shape) if d not in (*contract_x, *batch_x))
    n = w.size / max(1, groups * k)
    bits = min(w.bits, 16)
    return mxm.rounds_cost(machine, kind=kind, groups=groups, m=m, k=k, n=n, weight_bits=bits)


def _reduce(machine: Hardware, call: Call) -> Work:
    """A reduction over the last axis folds lanes; over others it adds vectors."""
    (x,) = call.operands
    if len(x.shape) - 1 in call.params["axes"]:
        return reduction_cost(machine, call)
    chip = machine.chip
    busy = vectors(x, chip) / chip.vxm_stream_groups
    return Work(
        unit=Unit.VXM,
        busy_cycles=busy,
        limits={"streams in": busy},
        latency_cycles=float(chip.vxm_entry_cycles + chip.alu_cycles),
        result_is_last=True,
    )


def _move(machine: Hardware, call: Call) -> Work:
    return move_cost(machine, call.results[0])


def _access(machine: Hardware, call: Call) -> Work:
    """Reads or writes at computed addresses, vector by vector."""
    chip = machine.chip
    moved = call.results[0]
    busy = ceil_div(moved.size_bytes, chip.vector_bytes) / chip.mem_accesses_per_cycle
    return Work(
        unit=Unit.MEM,
        busy_cycles=busy,
        limits={"accesses": busy},
        latency_cycles=chip.mem_slices / 2 / chip.mem_slices_per_hop,
        moved_bytes=moved.size_bytes,
    )


def _collective(kind: str) -> CostRule:
    def rule(machine: Hardware, call: Call) -> Work:
        x, out = call.operands[0], call.results[0]
        n_chips = call.params.get("axis_size")
        if not isinstance(n_chips, int):
            raise CostError(
                f"{kind}: the number of chips is not in the equation; "
                "use lpu_jax.datapath.c2c instead."
            )
        whole = out if kind == "all_gather" else x
        return machine.collective_cycles(kind, "auto", n_chips, 1, whole.size_bytes).as_work()

    return rule


RULES: dict[str, CostRule] = {
    "dot_general": _dot_general,
    **dict.fromkeys(
        [
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "argmax",
            "argmin",
        ],
        _reduce,
    ),
    **dict.fromkeys(["transpose", "concatenate", "slice", "pad", "rev", "split"], _move),
    **dict.fromkeys(["gather", "dynamic_slice", "dynamic_update_slice"], _access),
    **dict.fromkeys(["iota", "expand_dims", "axis_index", "pvary", "sharding_constraint"], free),
    "all_gather": _collective("all_gather"),
    "reduce_scatter": _collective("reduce_scatter"),
    "all_to_all": _collective("all_to_all"),
}


def rule_of(name: str) -> tuple[CostRule | None, AluChain | None]:
    """Find the row of a primitive: a cost rule, or its ALU operations.

    Raises:
        CostError: if there is none; the sentence names the primitive.
    """
    if name in ELEMENT_WISE:
        return None, ELEMENT_WISE[name]
    if name in RULES:
        return RULES[name], None
    raise CostError(
        f"primitive {name!r} has no cost rule; write it in operations of lpu_jax.datapath, or in "
        f"one of: {', '.join(sorted({*ELEMENT_WISE, *RULES}))}."
    )
