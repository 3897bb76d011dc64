"""Recurrences of the vector unit: a state that each new token updates, and short convolutions.

What it computes: gated linear recurrences in fp32, token after token, with or without the delta
rule, and causal convolutions over a few tokens; both keep what the next token needs, and tokens
that do not count change nothing. What it costs: the state, read once or (delta rule) twice and
written once for each token, at the rate of the streams. Not modelled: chunks of tokens as products
of the matrix unit, whose sums have another order.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from ..arguments import checked, described
from ..errors import LpuError
from ..numerics import elementary
from ..predicates import divides, may_equal
from .primitive import primitive
from .work import Call, Hardware, Quantity, Unit, Work, largest, product, vectors

#: ALU operations for each value of a state and token: to decay it and to read it by a key, which
#: the delta rule alone does; then to decay it, to add the change, to keep the old value where the
#: token does not count, and to read the result by a query.
_READ_OPERATIONS, _WRITE_OPERATIONS = 3, 6
#: Streams in for each value: state, decay and key; then these, the change and the query.
_READ_STREAMS, _WRITE_STREAMS = 3, 5


def _linear_recurrence_meaning(
    state: Array,
    queries: Array,
    keys: Array,
    values: Array,
    decay: Array,
    rates: Array,
    counts: Array,
    *,
    corrects: bool,
) -> tuple[Array, Array]:
    n_groups, n_new = values.shape[:2]
    counts = jnp.repeat(counts, n_groups // counts.shape[0])
    inside = jnp.moveaxis(state, 1, 0)  # [key, groups, value]

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x[..., None], inside.shape)

    def step(state: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        token, query, key, value, kept, rate = at
        faded = elementary.mul(state, spread(kept))
        if corrects:
            held = elementary.sum_leading(elementary.mul(faded, spread(key)))
            value = elementary.sub(value, held)
        rate = jnp.broadcast_to(rate[0][:, None], value.shape)
        change = elementary.mul(value, rate)
        change = jnp.broadcast_to(change[None], inside.shape)
        new = elementary.add(faded, elementary.mul(spread(key), change))
        read = elementary.sum_leading(elementary.mul(new, spread(query)))
        return jnp.where((token < counts)[None, :, None], new, state), read

    by_token = (jnp.moveaxis(x, 1, 0) for x in (queries, keys, values, decay, rates))
    tokens = jnp.arange(n_new, dtype=jnp.int32)
    last, reads = lax.scan(step, inside, (tokens, *by_token))
    return jnp.moveaxis(reads, 0, 1), jnp.moveaxis(last, 0, 1)


def _update_limits(machine: Hardware, n_vectors: Quantity, corrects: bool) -> dict[str, Quantity]:
    """Cycles that the updates of so many vectors of states take for one token."""
    chip = machine.chip
    streams = _READ_STREAMS * corrects + _WRITE_STREAMS
    return {
        "ALUs": n_vectors * _operations(corrects) / chip.vxm_alus_per_lane,
        "streams in": n_vectors * streams / chip.vxm_stream_groups,
    }


def _operations(corrects: bool) -> int:
    """ALU operations of a value and a token, each behind the other."""
    return _READ_OPERATIONS * corrects + _WRITE_OPERATIONS


def _linear_recurrence_cost(machine: Hardware, call: Call) -> Work:
    """Cost the updates of all states, token after token.

    By the delta rule a state is read once for its result by the key, and once more for the change
    and the result by the query. States take turns, so that what one waits for between the two is
    hidden behind the others, if there are enough of them. Numbers of a key channel are spread over
    the lanes of their vector as they are read (assumed).
    """
    chip, corrects = machine.chip, call.params["corrects"]
    state, n_new = call.operands[0], call.operands[3].shape[1]
    limits = _update_limits(machine, vectors(state, chip), corrects)
    alone = product(state.shape[1:]) / chip.lanes
    limits["one state after itself"] = (
        largest(*_update_limits(machine, alone, corrects).values())
        + (1 + corrects) * chip.vxm_entry_cycles
        + chip.alu_cycles * _operations(corrects)
    )
    limits = {name: n_new * cycles for name, cycles in limits.items()}
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles,
        result_is_last=True,
    )


_linear_recurrence = primitive(
    "vxm_linear_recurrence",
    abstract=lambda state, queries, keys, values, *_, **params: (
        jax.ShapeDtypeStruct(values.shape, values.dtype),
        jax.ShapeDtypeStruct(state.shape, state.dtype),
    ),
    meaning=_linear_recurrence_meaning,
    cost=_linear_recurrence_cost,
)


@checked
def linear_recurrence(
    state: Float32[Array, "groups key value"],
    queries: Float32[Array, "key t groups"],
    keys: Float32[Array, "key t groups"],
    values: Float32[Array, "groups t value"],
    decay: Float32[Array, "channels t groups"],
    rates: Float32[Array, "1 t groups"],
    counts: Int32[Array, " b"],
    *,
    corrects: bool,
) -> tuple[Float32[Array, "groups t value"], Float32[Array, "groups key value"]]:
    """Update states by a gated linear recurrence, token after token, and read them.

    With `S` the state, and of a token the query `q`, key `k`, value `v`, decay `a` and rate `b`:

        S = a S;  S = S + k (b (v - k S));  result = q S       (the delta rule)
        S = a S;  S = S + k (b v);          result = q S       (without)

    Args:
        state: of each group before the first token.
        queries: of each token; the numbers of a channel lie in one vector.
        keys: likewise.
        values: of each token.
        decay: what multiplies the state first: one number for all channels, or one for each.
        rates: how much of a difference is made up for, or of a value is added.
        counts: tokens of each sequence that count, its first ones: the others change no state. The
            groups are a multiple of the sequences, sequence by sequence.
        corrects: whether a value is corrected by what the state holds of its key, as by the delta
            rule.

    Returns:
        The result of each token, whatever it is where a token does not count; and the states.

    Raises:
        LpuError: groups that are no multiple of the sequences, or decays of neither one nor all
            channels.

    Fidelity:
        Order-dependent, the order is fixed: each operation is rounded once to fp32, sums over
        channels are made in ascending order from +0. Tokens one by one give the bits of all at
        once.

    Source:
        Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (arXiv 2412.06464), equation 10;
        `torch_recurrent_gated_delta_rule` in modeling_qwen3_next.py of Hugging Face transformers.
        Without the rule: Dao, Gu, "Transformers are SSMs" (arXiv 2405.21060), whose `B`, `C` and
        step are key, query and rate; `mamba2_selective_state_update` in modeling_nemotron_h.py.
    """
    if not divides(counts.shape[0], state.shape[0]):
        raise LpuError(
            f"recurrence.linear_recurrence: {state.shape[0]} groups of states were given for "
            f"{counts.shape[0]} sequences; each must have as many groups as the others."
        )
    if not (may_equal(decay.shape[0], 1) or may_equal(decay.shape[0], state.shape[1])):
        raise LpuError(
            f"recurrence.linear_recurrence: decay {described(decay)} was given for states "
            f"{described(state)}; it must have one channel or as many as the keys."
        )
    return _linear_recurrence(  # type: ignore[no-any-return]
        state, queries, keys, values, decay, rates, counts, corrects=corrects
    )


def _short_convolution_meaning(
    before: Array, x: Array, taps: Array, counts: Array
) -> tuple[Array, Array]:
    n_taps, n_new = taps.shape[0], x.shape[1]
    row = jnp.concatenate([before, x], axis=1)
    shifted = jnp.stack([row[:, i : i + n_new] for i in range(n_taps)]).astype(jnp.float32)
    weights = jnp.broadcast_to(taps[:, None, None, :], shifted.shape)

    def last(row: Array, count: Array) -> Array:
        return lax.dynamic_slice_in_dim(row, count, n_taps - 1, axis=0)

    kept: Array = jax.vmap(last)(row, counts)
    return elementary.sum_leading(elementary.mul(shifted, weights)), kept


def _short_convolution_cost(machine: Hardware, call: Call) -> Work:
    """Cost a multiplication and an addition for each value and tap; each tap reads its tokens."""
    chip = machine.chip
    x, taps = call.operands[1:3]
    n_taps = taps.shape[0]
    total = vectors(x, chip)
    limits = {
        "ALUs": 2 * n_taps * total / chip.vxm_alus_per_lane,
        "streams in": 2 * n_taps * total / chip.vxm_stream_groups,
    }
    return Work(
        unit=Unit.VXM,
        busy_cycles=largest(*limits.values()),
        limits=limits,
        latency_cycles=chip.vxm_entry_cycles + chip.alu_cycles * 2 * n_taps,
    )


_short_convolution = primitive(
    "vxm_short_convolution",
    abstract=lambda before, x, *_: (
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct(before.shape, before.dtype),
    ),
    meaning=_short_convolution_meaning,
    cost=_short_convolution_cost,
)


@checked
def short_convolution(
    before: Float[Array, "b kept c"],
    x: Float[Array, "b t c"],
    taps: Float32[Array, "taps c"],
    counts: Int32[Array, " b"],
) -> tuple[Float32[Array, "b t c"], Float[Array, "b kept c"]]:
    """Convolve each channel along the tokens with a few taps, the last of them for the token.

    Args:
        before: the last `taps - 1` tokens before these; zeros where there were none.
        x: new tokens, in the same format.
        taps: of each channel.
        counts: new tokens of each sequence that count, its first ones.

    Returns:
        `y[t] = sum_i taps[i] * x[t - taps + 1 + i]`, and the last tokens that count, for the next.

    Raises:
        LpuError: another number of earlier tokens, or another format.

    Fidelity:
        Order-dependent, the order is fixed: one rounding of each product, then fp32 additions from
        +0 in the order of the tokens. What is kept is exact.
    """
    if not may_equal(before.shape[1], taps.shape[0] - 1) or before.dtype != x.dtype:
        raise LpuError(
            f"recurrence.short_convolution: before={described(before)} was given for "
            f"x={described(x)} and {taps.shape[0]} taps; it must have one token fewer than taps, "
            "of the same type."
        )
    return _short_convolution(before, x, taps, counts)  # type: ignore[no-any-return]
